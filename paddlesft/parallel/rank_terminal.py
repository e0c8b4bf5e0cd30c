"""The way from the first rank to the terminal of the process that launched it.

What a rank writes to its standard output and error goes into its log, together with what libraries have to say. What a
user is meant to see goes through two named pipes in the run's directory of records instead, so that lines, colours and
the live line arrive as from a process in the terminal itself.
"""

from __future__ import annotations

import io
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from paddlesft.parallel.rank_ends import RECORDS

STREAMS = ("stdout", "stderr")
TERMINALS = "PADDLESFT_TERMINALS"  # which of them are terminals, "stdout,stderr", and the width: "stderr:120"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


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
    """A text stream that says whether a terminal is at its other end, and goes quiet when nobody is there any more.

    Args:
        path: the named pipe.
        is_terminal: what it says.
        log: receives a copy without colours.
    """

    def __init__(self, path: Path, is_terminal: bool, log: TextIO | None = None) -> None:
        descriptor = os.open(path, os.O_WRONLY)
        super().__init__(io.FileIO(descriptor, "wb"), encoding="utf-8", errors="replace", write_through=True)
        self._is_terminal, self._log = is_terminal, log

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        if self._log is not None:
            self._log.write(COLOURS.sub("", text))
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
    terminals = names.split(",")
    stdout = _Pipe(Path(directory, "stdout"), "stdout" in terminals, log=sys.stdout)
    # in one terminal lines and the live line have to arrive in the order in which they were written
    same = all(name in terminals for name in STREAMS)
    stderr = _Pipe(Path(directory, "stdout" if same else "stderr"), "stderr" in terminals)
    return RankTerminal(stdout, stderr, int(width) if width.isdigit() else 80)
