"""Of all the ends of a run's ranks, the one that the others followed from is found."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from paddlesft.parallel.rank_ends import (
    ENDED_BY_ANOTHER,
    FAILED,
    HANGS,
    RECORDS,
    USER_ERROR,
    LastWords,
    RankEnd,
    first_failure,
    last_words,
    leave_last_words,
    read_ends,
)


def said(rank: int, when: float, kind: str = FAILED, last_line: str = "ValueError: x") -> RankEnd:
    return RankEnd(rank, 1, when + 0.1, LastWords(rank, kind, last_line, f"Traceback ...\n{last_line}", when))


KILLED = RankEnd(1, -signal.SIGKILL, 10.5)
STOPPED = RankEnd(2, -signal.SIGTERM, 9.0)
MISSING = "paddlesft.parallel.gloo.transport.MissingRank: Rank 0 waits in all_reduce for rank 1"
GLOO = "RuntimeError: [Gloo] Connection closed by peer [127.0.0.1]:1234"


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        ([said(0, 2.0), said(1, 1.0)], 1),
        ([said(0, 1.0, last_line=MISSING), said(1, 2.0)], 1),  # heard first, but a consequence
        ([said(0, 10.0, last_line=GLOO), KILLED, STOPPED], 1),
        ([said(0, 10.0), KILLED], 1),  # the kernel takes its time to bury a process
        (
            [said(0, 10.0, kind=ENDED_BY_ANOTHER), said(1, 9.0, last_line=MISSING)],
            0,
        ),  # names the rank on another machine
        ([said(0, 10.0, kind=HANGS), said(1, 9.0, kind=ENDED_BY_ANOTHER)], 0),
        ([said(0, 10.0, kind=USER_ERROR), said(1, 10.1, kind=USER_ERROR)], 0),
        ([RankEnd(0, 0, 1.0), STOPPED, RankEnd(3, 5, 2.0)], 3),
    ],
)
def test_the_first_failure_is_the_cause(ends: list[RankEnd], rank: int) -> None:
    assert first_failure(ends).rank == rank


def test_a_run_that_was_stopped_has_no_failure() -> None:
    assert first_failure([RankEnd(0, 0, 1.0), STOPPED]) is None


def test_the_words_that_come_first_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_last_words(last_words(FAILED, "nobody listens"))  # no launcher: nothing happens
    monkeypatch.setenv(RECORDS, str(tmp_path))
    monkeypatch.setenv("PADDLE_TRAINER_ID", "3")
    leave_last_words(last_words(FAILED, "first"))
    leave_last_words(last_words(FAILED, "second"))
    (tmp_path / "end.1.json").write_text('{"code": -9, "time": 4.0}')
    (tmp_path / "end.launcher.json").write_text('{"code": 1, "time": 4.0}')
    one, three = read_ends(tmp_path)
    assert (one.rank, one.code, one.words) == (1, -9, None)
    assert (three.rank, three.code, three.words.text) == (3, None, "first")
