from pathlib import Path

from paddlesft.training.run_log import FILE, RunLog, read_log


def test_floats_read_back_unchanged_and_records_are_ordered(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append("train", {"step": 1, "loss": 0.1 + 0.2})
    log.append("eval", {"step": 1, "eval_loss": 1e-17})
    records = read_log(tmp_path)
    assert [(r["kind"], r["step"]) for r in records] == [("train", 1), ("eval", 1)]
    assert records[0]["loss"] == 0.1 + 0.2 and records[1]["eval_loss"] == 1e-17 and records[0]["time"] > 0


def test_a_resume_removes_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.append("train", {"step": step, "loss": 1.0})
    RunLog(tmp_path, from_step=3).append("train", {"step": 4, "loss": 2.0})
    assert [(r["step"], r["loss"]) for r in read_log(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    RunLog(tmp_path)
    assert read_log(tmp_path) == []


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    RunLog(tmp_path).append("train", {"step": 1, "loss": 1.0})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "train", "st')
    assert [r["step"] for r in read_log(tmp_path)] == [1]
    assert read_log(tmp_path / "nowhere") == []
