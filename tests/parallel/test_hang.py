"""A run that gets nowhere is ended; the ranks that lag behind are named, and all write what they were doing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from paddlesft.parallel.rank_ends import ENDED_BY_ANOTHER, HANGS, LastWords
from paddlesft.training.hang_watch import HangWatch, RankState, hang_words, ranks_behind
from tests.parallel.ranks import REPO
from tests.parallel.troubled_runs import run_keys, troubled, write_rows


@pytest.mark.slow
def test_a_rank_that_sleeps_for_ever_is_found(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    keys = run_keys(out, tiny_llama, write_rows(tmp_path / "data"), "tensor_parallel_degree=2", "save_strategy=no")
    begin = time.monotonic()
    launched, _ = troubled("sleep", 1, 4, out, [*keys, "hang_timeout=3"])
    assert launched.code == 1 and time.monotonic() - begin < 90
    lines = launched.report().splitlines()
    assert lines[0] == (
        "no rank has finished a step, an evaluation batch or a checkpoint for 3 s (hang_timeout). "
        "The others wait for rank 1:"
    )
    assert lines[1].startswith("  rank 1: step 3 of 12 done; in get_into_trouble (") and "troubled_rank.py:" in lines[1]
    logs = [path.read_text(encoding="utf-8") for path in launched.logs]
    for log in logs:
        assert "What the threads of this rank are doing:" in log and "Thread 0x" in log
    assert "in get_into_trouble" in logs[1] and "in receive" in logs[0]  # what it waits in


def state(progress: int, waits: bool = False, **more: Any) -> RankState:
    return RankState(
        **{"progress": progress, "doing": "step 3 of 9 done", "idle": 50.0, "exempt": False, "waits": waits, **more}
    )


@pytest.mark.parametrize(
    ("states", "silent", "behind"),
    [
        ([state(7, True), state(6), state(7, True)], [], [1]),
        ([state(7, True), state(7), state(7, True), state(7)], [], [1, 3]),  # the others wait
        ([state(7, True), state(7, True)], [], [0, 1]),  # nothing tells them apart
        ([state(7), state(6), state(9)], [2], [2]),
    ],
)
def test_the_ranks_that_the_others_wait_for_are_named(
    states: list[RankState], silent: list[int], behind: list[int]
) -> None:
    assert ranks_behind(dict(enumerate(states)), silent) == behind


def test_the_message_says_what_each_of_them_does() -> None:
    text = hang_words({0: state(7, True), 1: state(6, place="read (disk.py:3)")}, [1], 30).text
    assert "(hang_timeout). The others wait for rank 1:\n" in text
    assert "  rank 1: step 3 of 9 done, and no longer answers; in read (disk.py:3)\n" in text
    text = hang_words({0: state(7, True), 1: state(7, True)}, [], 30).text
    assert "No rank lags behind the others:\n  rank 0: step 3 of 9 done; in an unknown place\n  rank 1: " in text


class Wire:
    """Joins the watches of a run in one process."""

    def __init__(self) -> None:
        self.watches: list[HangWatch] = []
        self.cut: set[int] = set()

    def from_rank(self, rank: int) -> Any:
        wire = self

        class Lifeline:
            def send(self, message: Any) -> None:
                for to in [w for w in wire.watches if (w.rank == 0) != (rank == 0)]:
                    if rank not in wire.cut:
                        to.heard(rank, message)

        return Lifeline()


def watches(seconds: float) -> tuple[Wire, list[HangWatch], dict[int, LastWords]]:
    wire, ended = Wire(), {}
    for rank in range(2):
        watch = HangWatch(seconds, rank, 2, lambda words, rank=rank: ended.setdefault(rank, words))
        watch.lifeline = wire.from_rank(rank)
        wire.watches.append(watch)
    return wire, wire.watches, ended


def test_only_ranks_that_all_stand_still_hang(capfd: pytest.CaptureFixture[str]) -> None:
    _, (first, second), ended = watches(0.6)
    try:
        for watch in (first, second):
            watch.start()
        time.sleep(1.0)
        assert not ended  # nothing is watched yet: models are loaded, data prepared
        with first.watching("training"), second.watching("training"):
            for _ in range(10):
                first.mark("step")  # the second one waits for it
                time.sleep(0.1)
            assert not ended
            second.exempt("saving")
            time.sleep(1.0)
            assert not ended
            first.mark("step"), second.mark("step"), first.mark("step")
            end = time.monotonic() + 10
            while len(ended) < 2 and time.monotonic() < end:
                time.sleep(0.05)
    finally:
        first.stop(), second.stop()
    assert (ended[0].kind, ended[1].kind) == (HANGS, ENDED_BY_ANOTHER)
    assert ended[0].text == ended[1].text and "wait for rank 1:" in ended[0].text
    assert capfd.readouterr().err.count("What the threads of this rank are doing:") == 2


def test_a_first_rank_that_stands_still_is_found_by_the_others() -> None:
    wire, (first, second), ended = watches(0.6)
    try:
        with first.watching("training"), second.watching("training"):
            first.start(), second.start()
            time.sleep(0.3)
            wire.cut.add(0)
            end = time.monotonic() + 10
            while 1 not in ended and time.monotonic() < end:
                first.mark("step")
                time.sleep(0.05)
    finally:
        first.stop(), second.stop()
    assert 0 not in ended and ended[1].kind == HANGS and "wait for rank 0:" in ended[1].text
    assert "and no longer answers" in ended[1].text


STUCK = """
import re, sys, time
from paddlesft.training.hang_watch import HangWatch
watch = HangWatch(0.5, 1, 2, lambda words: None)
class Lifeline:
    def send(self, message): pass
watch.lifeline = Lifeline()
watch.start()
with watch.watching("training"):
    time.sleep(0.3)
    re.match("(a+)+$", "a" * 60 + "b")  # for ages, and no other thread runs
"""


def test_a_rank_whose_interpreter_is_held_for_good_ends_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Timeout (0:00:00" in done.stderr and "line 11 in <module>" in done.stderr


def test_the_wait_of_the_cpu_backend_is_left_to_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddlesft.parallel.gloo.groups import TIMEOUT_VARIABLE
    from paddlesft.training import rank_watch as room

    for given, then in ((None, threading.TIMEOUT_MAX), ("7", 7.0)):
        monkeypatch.setenv(TIMEOUT_VARIABLE, given) if given else monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
        monkeypatch.setattr(room, "world_size", lambda: 2)
        monkeypatch.setenv("PADDLE_CURRENT_ENDPOINT", "127.0.0.1:1")

        class Watch(room.RankWatch):
            def __init__(self, seconds: float) -> None: ...

            def done(self) -> None: ...

        monkeypatch.setattr(room, "_ManyRanks", Watch)
        with room.rank_watch(1800):
            assert float(os.environ[TIMEOUT_VARIABLE]) == then
