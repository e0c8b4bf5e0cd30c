"""Everything besides the weights that a run needs to go on: optimizer, schedule, loss scale, random generators.

The optimizer's state is kept under the names that the weights have in the whole model: ``NAME@moment1_0``. A unified
checkpoint holds it whole (``optimizer.safetensors``), whatever the layout; otherwise each rank keeps its own part
(``optimizer.tp00_pp01_shard00.safetensors``).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

from paddlesft.errors import CheckpointError
from paddlesft.parallel.division import Division
from paddlesft.parallel.place import is_first_copy, own_place, part_name
from paddlesft.training.optimizer_state import read_state, write_own_state, write_whole_state
from paddlesft.training.ranks import world_size

DIRECTORY = "training_state"  # apart from the weights, so that a checkpoint is also a plain model or adapter directory
OPTIMIZER, SCHEDULER, SCALER = "optimizer.safetensors", "scheduler.pdparams", "scaler.pdparams"
OPTIMIZER_AXES = ("tensor", "pipeline", "sharding")


def save_training_state(directory: Path | None, trainer: Any, unified: bool = True) -> None:
    """Write optimizer, schedule, loss scale and random generators into a checkpoint; all ranks call it.

    Args:
        directory: the checkpoint being written; for a unified one, None on all ranks but the first.
        trainer: whose state it is.
        unified: the first rank writes whole tensors; otherwise each rank its part.
    """
    states: list[Any] = [_generator_states()]
    if world_size() > 1:
        states = []
        dist.all_gather_object(states, _generator_states())
    directory = None if directory is None else directory / DIRECTORY
    first = dist.get_rank() == 0
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    if first:
        paddle.save(states, str(directory / _rng_file()))
    if trainer.args.ignore_save_lr_and_optim:
        return
    division = Division(trainer.model)
    if unified:
        write_whole_state(trainer.optimizer, division, None if directory is None else directory / OPTIMIZER)
    elif is_first_copy("data"):
        write_own_state(trainer.optimizer, division, directory / own_optimizer_file())
    if first:
        paddle.save(trainer.lr_scheduler.state_dict(), str(directory / SCHEDULER))
        if trainer.do_grad_scaling:
            paddle.save(trainer.scaler.state_dict(), str(directory / SCALER))


def own_optimizer_file() -> str:
    """Return the name of this rank's part of the optimizer's state."""
    part = part_name(*OPTIMIZER_AXES)
    return f"optimizer.{part}.safetensors" if part else OPTIMIZER


def load_training_state(directory: Path, trainer: Any) -> None:
    """Give a trainer the optimizer, schedule and loss scale of a checkpoint; its optimizer is wrapped already.

    Raises:
        CheckpointError: the checkpoint holds none (it was saved without), or they do not fit.
    """
    directory = directory / DIRECTORY
    own = directory / own_optimizer_file()
    optimizer = directory / OPTIMIZER if (directory / OPTIMIZER).is_file() else own
    missing = [path.name for path in (optimizer, directory / SCHEDULER) if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} has no {' and no '.join(missing)}: it was saved with ignore_save_lr_and_optim, or by an "
            "earlier version. It cannot be resumed; add ignore_load_lr_and_optim: true to start a fresh optimizer from "
            "its weights."
        )
    read_state(trainer.optimizer, Division(trainer.model), optimizer, whole=optimizer.name == OPTIMIZER)
    trainer.lr_scheduler.set_state_dict(paddle.load(str(directory / SCHEDULER)))
    if trainer.do_grad_scaling and (directory / SCALER).is_file():
        trainer.scaler.load_state_dict(paddle.load(str(directory / SCALER), return_numpy=True))


def load_random_state(directory: Path) -> bool:
    """Set the random generators to where they were when a checkpoint was written.

    Returns:
        False when the checkpoint was written by another number of processes, or by processes that divided the work in
        another way; the generators are left alone then.
    """
    path = directory / DIRECTORY / _rng_file()
    if not path.is_file():
        return False
    states = paddle.load(str(path), return_numpy=True)[dist.get_rank()]
    if states.get("place", own_place()) != own_place():
        return False
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    paddle.framework.core.default_cpu_generator().set_state(states["cpu"])
    if paddle.get_device().startswith("gpu"):
        paddle.set_cuda_rng_state(states["device"])
    tracker = get_rng_state_tracker()
    if states.get("tracker") and tracker.get_states_tracker():  # dropout inside divided layers
        tracker.set_states_tracker(states["tracker"])
    return True


def _rng_file() -> str:
    return "rng_state.pth" if world_size() == 1 else f"rng_state_{world_size()}.pth"


def _generator_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": paddle.framework.core.default_cpu_generator().get_state(),
        "device": paddle.get_cuda_rng_state() if paddle.get_device().startswith("gpu") else None,
        "tracker": get_rng_state_tracker().get_states_tracker(),
        "place": own_place(),
    }
