"""A rank of ``paddlesft train`` that gets into trouble: ``troubled_rank.py KIND RANK STEP MARKER KEYS ...``.

At the beginning of STEP rank RANK raises an error (raise), is killed (kill), sleeps for ever (sleep), is stopped (stop)
or finds bad input (user). That happens once: the file MARKER is written before, and nothing happens when it is there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from paddlesft.cli.main import main
from paddlesft.errors import UserError
from paddlesft.training.trainer import SFTTrainer

KIND, RANK, STEP, MARKER, *KEYS = sys.argv[1:]


def get_into_trouble() -> None:
    """Do what KIND says."""
    Path(MARKER).touch()
    if KIND == "raise":
        raise ValueError("the weights have flown away")
    if KIND == "user":
        raise UserError("learning_rate: found a rank that does not like it.")
    if KIND == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if KIND == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        time.sleep(1)


training_step = SFTTrainer.training_step


def troubled_step(self: SFTTrainer, *args: Any, **options: Any) -> Any:
    """Stand in for the trainer's step."""
    here = self.state.global_step + 1 == int(STEP) and os.environ["PADDLE_TRAINER_ID"] == RANK
    if here and not Path(MARKER).exists():
        get_into_trouble()
    return training_step(self, *args, **options)


SFTTrainer.training_step = troubled_step
sys.exit(main(["train", *KEYS]))
