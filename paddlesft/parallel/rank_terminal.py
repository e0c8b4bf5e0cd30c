"""The way from the first rank to the terminal of the process that launched it.

What a rank writes to its standard output and error goes into its log, together with what libraries have to say. What a
user is meant to see goes through two named pipes in the run's directory of records instead, so that lines, colours and
the live line arrive as from a process in the terminal itself.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from paddlesft.parallel.rank_ends import RECORDS

STREAMS = ("stdout", "stderr")
TERMINALS = "PADDLESFT_TERMINALS"  # which of them are terminals, "stdout,stderr", and the width: "stderr:120"


@dataclass
class RankTerminal:
    """The launcher's terminal, seen from a rank.

    Attributes:
        stdout: for lines.
        stderr: for the live line and errors.
        width: columns.
    """

    stdout: TextIO
    stderr: TextIO
    width: int


class _Pipe(io.TextIOWrapper):
    """A text stream that says whether a terminal is at its other end, and goes quiet when nobody is there any more."""

    def __init__(self, path: Path, is_terminal: bool) -> None:
        super().__init__(open(path, "wb", buffering=0), encoding="utf-8", errors="replace", write_through=True)  # noqa: SIM115
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            return len(text)


def describe_terminals(stdout: TextIO, stderr: TextIO, width: int) -> str:
    """Return what the ranks have to know about this process's streams, for the variable ``TERMINALS``."""
    names = [name for name, stream in zip(STREAMS, (stdout, stderr)) if stream.isatty()]
    return f"{','.join(names)}:{width}"


def make_pipes(records: Path) -> None:
    """Make the pipes that ``rank_terminal`` opens."""
    for name in STREAMS:
        os.mkfifo(records / name)


def rank_terminal() -> RankTerminal | None:
    """Open the way to the launcher's terminal; None where this process has a terminal or a log of its own."""
    directory = os.environ.get(RECORDS)
    if not directory or not all(Path(directory, name).is_fifo() for name in STREAMS):
        return None
    names, _, width = os.environ.get(TERMINALS, ":").partition(":")
    stdout, stderr = (_Pipe(Path(directory, name), name in names.split(",")) for name in STREAMS)
    return RankTerminal(stdout, stderr, int(width) if width.isdigit() else 80)
