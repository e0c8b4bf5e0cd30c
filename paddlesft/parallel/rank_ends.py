"""How the ranks of a run ended, and which of them began it.

A rank that fails leaves its last words in the run's directory of records before it ends (``leave_last_words``); how
the process ended is recorded beside them (``process_guard``). When one rank fails the others fail too, moments later,
because nobody answers them: what a user wants to see is the first.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

RECORDS = "PADDLESFT_RUN_RECORDS"  # the directory of records; set by ``launch``
RANK = "PADDLE_TRAINER_ID"
KILLED = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)  # nothing that another rank does leads to these
TORN_DOWN_SECONDS = 1.0  # a killed process's end is seen later than its connections' end

FAILED = "failed"
USER_ERROR = "user error"
ENDED_BY_ANOTHER = "ended by another"
HANGS = "hangs"
CONSEQUENCES = ("MissingRank", "Gloo", "gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


@dataclass(frozen=True)
class LastWords:
    """What a rank said before it ended.

    Attributes:
        rank: among all.
        kind: ``FAILED``, ``USER_ERROR``, ``HANGS`` or ``ENDED_BY_ANOTHER``.
        text: the error's message.
        trace: the traceback's text; empty for an error that a user can act on.
        time: when, seconds since the epoch.
        host: name of the machine.
        culprit: for ``ENDED_BY_ANOTHER`` the rank that it was; else this one.
        log: this rank's log file on its machine, where known.
    """

    rank: int
    kind: str
    text: str
    trace: str = ""
    time: float = 0.0
    host: str = ""
    culprit: int = -1
    log: str = ""


def own_rank() -> int:
    """Return the number of this process among all ranks; 0 where no launcher has started it."""
    return int(os.environ.get(RANK) or 0)


def own_log() -> str:
    """Return the path of this rank's log file as the launcher has named it; empty without a launcher."""
    directory, number = os.environ.get("PADDLE_LOG_DIR"), os.environ.get("PADDLE_RANK_IN_NODE")
    return str(Path(directory, f"workerlog.{number}")) if directory and number else ""


def last_words(kind: str, text: str, trace: str = "", culprit: int | None = None) -> LastWords:
    """Make the last words of this rank."""
    rank = own_rank()
    host = socket.gethostname()
    return LastWords(rank, kind, text, trace, time.time(), host, rank if culprit is None else culprit, own_log())


def leave_last_words(words: LastWords) -> None:
    """Write last words into the run's directory of records, if a launcher has made one; those left first stay."""
    directory = os.environ.get(RECORDS)
    if not directory or not os.path.isdir(directory):
        return
    path = Path(directory, f"words.{words.rank}.json")
    if path.exists():
        return
    scratch = path.with_name(f".{path.name}")
    try:
        scratch.write_text(json.dumps(asdict(words)), encoding="utf-8")
        scratch.replace(path)
    except OSError:
        return  # the launcher has gone


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended.

    Attributes:
        rank: among all.
        code: exit code, negative for a signal; None where the process's end was not recorded.
        time: when.
        words: what it said; None for a process that was killed.
    """

    rank: int
    code: int | None
    time: float
    words: LastWords | None = None

    @property
    def is_failure(self) -> bool:
        """Whether something went wrong here; to be stopped by the launcher is no failure."""
        return self.words is not None or self.code not in (None, 0, -signal.SIGTERM)

    @property
    def is_consequence(self) -> bool:
        """Whether this is how a rank ends that another one has left alone."""
        if self.words is None:
            return False
        if self.words.kind == ENDED_BY_ANOTHER:
            return True
        last_line = (self.words.trace.rstrip().splitlines() or [""])[-1]
        return self.words.kind == FAILED and any(mark in last_line for mark in CONSEQUENCES)

    @property
    def began(self) -> float:
        """When it began to end, for the order."""
        if self.words is not None:
            return self.words.time
        return self.time - TORN_DOWN_SECONDS if self.code in [-number for number in KILLED] else self.time


def read_ends(directory: Path) -> list[RankEnd]:
    """Read the records of a run.

    Args:
        directory: of the records.

    Returns:
        One entry for each rank that has ended or said why it would, in the order of ranks.
    """
    codes: dict[int, tuple[int, float]] = {}
    said: dict[int, LastWords] = {}
    for path in directory.glob("end.*.json"):
        rank = path.name.split(".")[1]
        if rank.isdigit():
            record = json.loads(path.read_text(encoding="utf-8"))
            codes[int(rank)] = record["code"], record["time"]
    for path in directory.glob("words.*.json"):
        words = LastWords(**json.loads(path.read_text(encoding="utf-8")))
        if words.rank not in said or words.time < said[words.rank].time:
            said[words.rank] = words
    return [
        RankEnd(rank, *codes.get(rank, (None, said[rank].time if rank in said else 0.0)), words=said.get(rank))
        for rank in sorted({*codes, *said})
    ]


def first_failure(ends: Iterable[RankEnd]) -> RankEnd | None:
    """Return the failure that the others followed from; None when nothing has failed."""
    failures = [end for end in ends if end.is_failure]
    return min(failures, key=_how_far_from_the_cause, default=None)


def _how_far_from_the_cause(end: RankEnd) -> tuple[int, float, int]:
    if not end.is_consequence:
        return 0, end.began, end.rank
    return (1 if end.words.kind == ENDED_BY_ANOTHER else 2), end.began, end.rank
