import json
from pathlib import Path

import pytest

from paddlesft.training.checkpoint_saving import (
    checkpoint_step,
    complete_checkpoints,
    delete_old_checkpoints,
    incomplete_checkpoints,
    new_checkpoint,
    what_is_missing,
)


def make(output_dir: Path, step: int) -> Path:
    with new_checkpoint(output_dir, step) as scratch:
        (scratch / "weights").write_bytes(b"w" * step)
        (scratch / "training_state").mkdir()
        (scratch / "training_state" / "optimizer").write_bytes(b"o")
    return output_dir / f"checkpoint-{step}"


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_a_checkpoint_appears_with_a_list_of_its_files(tmp_path: Path) -> None:
    path = make(tmp_path, 7)
    marker = json.loads((path / "complete.json").read_text())
    assert marker == {"step": 7, "files": {"weights": 7, "training_state/optimizer": 1}}
    assert what_is_missing(path) is None and names(list(tmp_path.iterdir())) == ["checkpoint-7"]


def test_nothing_appears_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError), new_checkpoint(tmp_path, 3) as scratch:
        (scratch / "weights").write_bytes(b"half")
        raise OSError("disk full")
    assert complete_checkpoints(tmp_path) == []
    assert [path.name for path, _ in incomplete_checkpoints(tmp_path)] == [".checkpoint-3.incomplete"]
    make(tmp_path, 3)  # the remains are no obstacle
    assert names(complete_checkpoints(tmp_path)) == ["checkpoint-3"] and incomplete_checkpoints(tmp_path) == []


def test_the_same_step_again_replaces_the_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 3)
    with new_checkpoint(tmp_path, 3) as scratch:
        (scratch / "other").write_bytes(b"new")
    assert names(sorted((tmp_path / "checkpoint-3").iterdir())) == ["complete.json", "other"]
    assert names(list(tmp_path.iterdir())) == ["checkpoint-3"]


def test_damage_is_named(tmp_path: Path) -> None:
    path = make(tmp_path, 7)
    (path / "weights").write_bytes(b"short")
    assert what_is_missing(path) == "weights has 5 bytes instead of 7"
    (path / "weights").unlink()
    assert what_is_missing(path) == "weights is missing"
    (path / "complete.json").write_text("{")
    assert what_is_missing(path) == "its complete.json cannot be read"
    (path / "complete.json").unlink()
    assert what_is_missing(path) == "it has no complete.json: it was not written to its end, or by another program"
    assert complete_checkpoints(tmp_path) == [] and incomplete_checkpoints(tmp_path)[0][0] == path


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        make(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert names(complete_checkpoints(tmp_path)) == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]
    assert checkpoint_step(tmp_path / "checkpoint-best") is None
    assert complete_checkpoints(tmp_path / "nowhere") == []


def test_the_oldest_go_but_never_the_best_nor_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    assert delete_old_checkpoints(tmp_path, None) == []
    assert names(delete_old_checkpoints(tmp_path, 2, best="elsewhere/checkpoint-1")) == ["checkpoint-2", "checkpoint-3"]
    assert names(complete_checkpoints(tmp_path)) == ["checkpoint-1", "checkpoint-4"]
    assert delete_old_checkpoints(tmp_path, 1, best="checkpoint-1") == []
    assert names(delete_old_checkpoints(tmp_path, 1)) == ["checkpoint-1"]
    assert delete_old_checkpoints(tmp_path, 1) == [] and names(list(tmp_path.iterdir())) == ["checkpoint-4"]


def test_an_incomplete_newer_checkpoint_does_not_cost_the_only_complete_one(tmp_path: Path) -> None:
    make(tmp_path, 5)
    damaged = make(tmp_path, 9)
    (damaged / "weights").unlink()
    assert delete_old_checkpoints(tmp_path, 1) == []
    assert names(complete_checkpoints(tmp_path)) == ["checkpoint-5"]
