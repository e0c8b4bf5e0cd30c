"""``faulty_training.py FAULT CONFIG``: a process of a rehearsal with a fault that only ranks have, not one process.

``gradient``: tensor parallelism does not add up the gradient of a layer's input. ``factor``: gradients are too large by
half. ``rank``: rank 1 dies as soon as it trains.
"""

from __future__ import annotations

import os
import sys

from paddle.distributed.fleet.layers.mpu import mp_ops

from paddlesft.cli.rehearse_rank import main
from paddlesft.parallel import gloo
from paddlesft.training.passes import Passes
from paddlesft.training.trainer import SFTTrainer

FAULT = sys.argv[1]
install, train, make_passes = gloo.install, SFTTrainer.train, SFTTrainer.passes.fget


def install_without_a_sum(rows_only: bool = False) -> bool:
    """Install the backend, then leave a sum out of it."""
    installed = install(rows_only)
    mp_ops.c_identity_eager.backward = staticmethod(lambda ctx, gradient: gradient)
    return installed


def passes_that_exaggerate(trainer: SFTTrainer) -> Passes:
    """Make the trainer's passes, whose gradients are too large."""
    passes = make_passes(trainer)
    if "step" not in vars(passes):
        step = passes.step
        passes.step = lambda batches, factor: step(batches, 1.5 * factor)
    return passes


def train_but_for_one(trainer: SFTTrainer, *args: object, **kwargs: object) -> object:
    """Train, except in rank 1."""
    if os.environ["PADDLE_TRAINER_ID"] == "1":
        raise RuntimeError("the card fell off the bus")
    return train(trainer, *args, **kwargs)


if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
    if FAULT == "gradient":
        gloo.install = install_without_a_sum
    elif FAULT == "factor":
        SFTTrainer.passes = property(passes_that_exaggerate)
    else:
        SFTTrainer.train = train_but_for_one
sys.exit(main(sys.argv[2:]))
