from pathlib import Path

import pytest

from paddlesft.errors import CheckpointError
from paddlesft.training import checkpoint_writing
from paddlesft.training.checkpoint_saving import complete_checkpoints, incomplete_checkpoints
from tests.training.small_runs import small_run


def test_files_that_other_nodes_kept_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").write_text("")
    files = [["here"], ["training_state/optimizer.tp01.safetensors"]]
    monkeypatch.setattr(checkpoint_writing.dist, "all_gather_object", lambda found, own: found.extend(files))
    with pytest.raises(CheckpointError) as error:
        checkpoint_writing._find_all(tmp_path, ["here"])
    text = str(error.value)
    assert text.startswith(f"output_dir: {tmp_path.parent} is not the same directory on all nodes: 1 files that other")
    assert "training_state/optimizer.tp01.safetensors (rank 1)" in text and "set unified_checkpoint: true" in text


def test_a_failure_leaves_nothing_that_looks_like_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writing, "save_training_state", full_disk)
    with pytest.raises(OSError, match="No space left"):
        small_run(tmp_path, "lora=true", "max_steps=2", "save_strategy=steps", "save_steps=2")
    assert complete_checkpoints(tmp_path) == []
    assert [path.name for path, _ in incomplete_checkpoints(tmp_path)] == [".checkpoint-2.incomplete"]


def test_a_best_checkpoint_that_some_ranks_cannot_read_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writing.dist, "all_gather_object", lambda found, own: found.extend([True, own]))
    (tmp_path / "checkpoint-2").mkdir()
    checkpoint_writing._let_all_see(tmp_path / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"load_best_model_at_end: true, but rank 1 cannot see .*checkpoint-3"):
        checkpoint_writing._let_all_see(tmp_path / "checkpoint-3")
