"""Run a command that cannot outlive whoever started it: ``process_guard.py DIRECTORY [NAME=VALUE ...] -- COMMAND``.

It stands between a launcher and each process that the launcher starts. When the launcher dies, by whatever signal,
Linux ends this process and its child with it, so that nothing is left running. When the child ends, its exit code and
the time are written to ``DIRECTORY/end.RANK.json``, which a killed process cannot do itself. It is a file to be run,
uses the standard library only and costs a few megabytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)
RANK = "PADDLE_TRAINER_ID"


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask Linux to send this process a signal when the process that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


def run_guarded(command: Sequence[str]) -> int:
    """Run a command and hand SIGTERM on to it.

    Args:
        command: the program and its arguments.

    Returns:
        Its exit code; the negative number of the signal that ended it.
    """
    child = os.fork()
    if child == 0:
        end_with_parent()
        try:
            os.execvp(command[0], list(command))
        except OSError as error:
            os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
            os._exit(127)

    def hand_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, hand_on)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(argv: Sequence[str]) -> int:
    """Run a command and write how it ended.

    Args:
        argv: the directory of the record; environment variables to set, or to unset where the value is empty; ``--``;
            the program and its arguments.

    Returns:
        The exit code for the shell: 128 and the signal's number for a child that a signal ended.
    """
    end_with_parent()
    directory, *rest = argv
    bar = rest.index("--")
    rank = os.environ.get(RANK, "launcher")
    for assignment in rest[:bar]:
        name, _, value = assignment.partition("=")
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    code = run_guarded(rest[bar + 1 :])
    record, scratch = (Path(directory, name) for name in (f"end.{rank}.json", f".end.{rank}.json"))
    try:
        scratch.write_text(json.dumps({"code": code, "time": time.time()}), encoding="utf-8")
        scratch.replace(record)
    except OSError:
        pass  # the launcher has gone and taken the directory with it
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
