"""A rank of the project's own run, the second of which is killed while it saves for the second time: ``JOBS.json``."""

from __future__ import annotations

import os
import signal
from typing import Any
from unittest import mock

from paddlesft.training import training_state
from tests.parallel.programs import own_training

LAST = 2  # the time of saving that it does not survive


def dying(write: Any) -> Any:
    """Let a function that writes the optimizer's state be the last that the second rank does."""
    times = 0

    def write_or_die(*args: Any) -> None:
        nonlocal times
        times += 1
        if times == LAST and own_training.RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*args)

    return write_or_die


if __name__ == "__main__":
    names = ("write_own_state", "write_whole_state")
    with mock.patch.multiple(training_state, **{name: dying(getattr(training_state, name)) for name in names}):
        own_training.main()
