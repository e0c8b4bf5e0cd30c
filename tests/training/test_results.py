import json
from pathlib import Path

import pytest

from paddlesft.models import write_provenance
from paddlesft.training.results import SOURCE, remove_earlier_run, save_final_model, save_metrics, save_plot


def test_metrics_are_kept_apart_and_together(tmp_path: Path) -> None:
    save_metrics(tmp_path, "train", {"train_loss": 0.1 + 0.2})
    save_metrics(tmp_path, "eval", {"eval_loss": 2.0})
    assert json.loads((tmp_path / "train_results.json").read_text()) == {"train_loss": 0.1 + 0.2}
    assert json.loads((tmp_path / "all_results.json").read_text()) == {"train_loss": 0.1 + 0.2, "eval_loss": 2.0}
    assert not list(tmp_path.glob(".*"))


def test_the_final_model_is_there_as_a_whole_or_not_as_one(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "weights").write_text("new")
        write_provenance(directory, source=SOURCE)

    def fail(directory: Path) -> None:
        (directory / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_final_model(tmp_path, fail)
    assert not (tmp_path / "weights").exists() and not (tmp_path / "paddlesft.json").exists()
    save_final_model(tmp_path, write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["paddlesft.json", "weights"]


def test_only_what_a_run_wrote_is_removed(tmp_path: Path) -> None:
    for name in ("train_log.jsonl", "loss.png", "eval_results.json", "model.safetensors", "notes.txt", "config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoint-3").mkdir()
    # whose model this is nobody knows: it stays
    assert set(remove_earlier_run(tmp_path)) == {"checkpoint-3", "eval_results.json", "loss.png", "train_log.jsonl"}
    write_provenance(tmp_path, source=f"{SOURCE}, full")
    assert set(remove_earlier_run(tmp_path)) == {"config.json", "model.safetensors", "paddlesft.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert remove_earlier_run(tmp_path / "nowhere") == []


def test_no_log_no_plot(tmp_path: Path) -> None:
    assert save_plot(tmp_path, "title") is None
