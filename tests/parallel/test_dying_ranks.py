"""When a rank dies, all ranks of all machines end, its error is shown, and the last checkpoint is whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.training.checkpoint_saving import checkpoint_step, complete_checkpoints
from paddlesft.training.run_log import read_log
from tests.parallel.ranks import REPO
from tests.parallel.troubled_runs import run_keys, troubled, troubled_on_two_nodes, write_rows


@pytest.mark.slow
def test_the_error_of_the_rank_that_raises_is_shown(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launched, shown = troubled("raise", 1, 4, out, run_keys(out, tiny_llama, write_rows(tmp_path / "data")))
    report = launched.report()
    assert launched.code == 1
    assert report.startswith("rank 1 failed first: ValueError: the weights have flown away\nTraceback (most recent ")
    assert "in get_into_trouble\n" in report and "workerlog.N (one for each rank)" in report
    assert "step 3/6" in shown and "step 4/6" not in shown and "Traceback" not in shown
    assert [checkpoint_step(path) for path in complete_checkpoints(out)] == [2]
    assert "the weights have flown away" in launched.logs[1].read_text(encoding="utf-8")


KILLER = """
import os, signal, sys, threading, time
def kill_once(checkpoint, marker):
    while not os.path.exists(checkpoint + "/complete.json"):
        time.sleep(0.02)
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("PADDLE_TRAINER_ID") == "1" and sys.orig_argv[2] == "paddlesft":  # not the rank's guard
    threading.Thread(target=kill_once, args=({checkpoint!r}, {marker!r}), daemon=True).start()
"""


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_goes_on_by_itself(
    run_cli: Callable, run_here: Callable, tiny_llama: Path, tmp_path: Path
) -> None:
    data, out, alone = write_rows(tmp_path / "data"), tmp_path / "out", tmp_path / "alone"
    killer = KILLER.format(checkpoint=str(out / "checkpoint-10"), marker=str(tmp_path / "marker"))
    (tmp_path / "sitecustomize.py").write_text(killer, encoding="utf-8")
    keys = ["max_steps=60", "save_steps=10", "save_total_limit=2"]
    path = f"{tmp_path}{os.pathsep}{REPO}"
    launch = ["train", "--nproc", "2", "--max_restarts=1", *run_keys(out, tiny_llama, data, *keys)]
    done = run_cli(*launch, PYTHONPATH=path, OMP_NUM_THREADS="1", timeout=200)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "marker").exists()
    error = done.stderr
    assert error.startswith(
        "paddlesft train: rank 1 was killed (SIGKILL). Linux does that to the largest process when "
    )
    assert "starting again, 1 of 1 (--max_restarts): the run goes on from its newest complete checkpoint" in error
    assert f"going on from {out / 'checkpoint-'}" in done.stdout and "step 60/60" in done.stdout
    assert done.stdout.count("2 processes; logs: ") == 1 and "Traceback" not in done.stdout + done.stderr
    assert (
        run_here(
            "train", *run_keys(alone, tiny_llama, data, *keys, "gradient_accumulation_steps=2", "save_strategy=no")
        ).returncode
        == 0
    )
    curves = [[(r["step"], r["loss"]) for r in read_log(path) if r["kind"] == "train"] for path in (out, alone)]
    assert [step for step, _ in curves[0]] == list(range(1, 61))
    assert max(abs(a[1] - b[1]) for a, b in zip(*curves)) < 1e-4


@pytest.mark.slow
def test_the_other_machine_ends_too_and_shows_the_error(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    keys = run_keys(out, tiny_llama, write_rows(tmp_path / "data"), "tensor_parallel_degree=2", "save_strategy=no")
    begin = time.monotonic()
    first, second = troubled_on_two_nodes("raise", 1, 3, out, keys)
    assert time.monotonic() - begin < 90
    assert (first.code, second.code) == (1, 1)
    assert second.report().startswith("rank 1 failed first: ValueError: the weights have flown away\nTraceback")
    report = first.report()
    assert report.startswith("rank 1 on ") and "failed first: ValueError: the weights have flown away\n" in report
    assert "in get_into_trouble\n" in report  # its traceback
    assert f": {second.logs[0]}\nLogs: {first.log_dir}" in report  # where its log is, and where ours are
