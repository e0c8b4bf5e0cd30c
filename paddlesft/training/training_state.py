"""Everything besides the weights that a run needs to go on: optimizer, schedule, loss scale, random generators."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from paddlesft.errors import CheckpointError
from paddlesft.training.ranks import world_size

DIRECTORY = "training_state"  # apart from the weights, so that a checkpoint is also a plain model or adapter directory
OPTIMIZER, SCHEDULER, SCALER = "optimizer.pdopt", "scheduler.pdparams", "scaler.pdparams"
MASTER_WEIGHTS, LR_STATE = "master_weights", "LR_Scheduler"


def optimizer_state(optimizer: Any, model: paddle.nn.Layer) -> dict[str, Any]:
    """Return the optimizer's state under the weights' structured names.

    Paddle names parameters by a counter (``linear_3.w_0``), so its own state only fits a process that created its
    layers in the same order, and silently starts from zero otherwise.

    Args:
        optimizer: a paddle optimizer.
        model: the model whose parameters it updates.
    """
    structured = {p.name: name for name, p in model.named_parameters() if not p.stop_gradient}
    by_length = sorted(structured, key=len, reverse=True)
    state: dict[str, Any] = {}
    for key, value in optimizer.state_dict().items():
        if key == LR_STATE:
            continue  # saved with the schedule
        if key == MASTER_WEIGHTS:
            state[key] = {structured[name]: tensor for name, tensor in value.items() if name in structured}
            continue
        owner = next((name for name in by_length if key.startswith(f"{name}_")), None)
        state[f"{structured[owner]}@{key[len(owner) + 1 :]}" if owner else key] = value
    return state


def load_optimizer_state(optimizer: Any, model: paddle.nn.Layer, state: dict[str, Any], where: Path) -> None:
    """Give an optimizer the state that ``optimizer_state`` returned.

    Raises:
        CheckpointError: the state is not of these parameters.
    """
    names = {name: p.name for name, p in model.named_parameters() if not p.stop_gradient}
    found = {key.split("@", 1)[0] for key in state if "@" in key}
    missing, extra = sorted(set(names) - found), sorted(found - set(names))
    if state and (missing or extra):
        example = f"no state for {missing[0]}" if missing else f"state for {extra[0]}, which is not trained now"
        raise CheckpointError(
            f"{where} does not fit the weights that this run trains ({example}; {len(missing)} missing, {len(extra)} "
            "left over). Resume with the config that wrote the checkpoint, or start anew in another output_dir."
        )
    own: dict[str, Any] = {}
    for key, value in state.items():
        if key == MASTER_WEIGHTS:
            own[key] = {names[name]: tensor for name, tensor in value.items()}
        elif "@" in key:
            name, rest = key.split("@", 1)
            own[f"{names[name]}_{rest}"] = value
        else:
            own[key] = value
    optimizer.set_state_dict(own)


def save_training_state(directory: Path, trainer: Any) -> None:
    """Write optimizer, schedule, loss scale and random generators into a checkpoint (all ranks call it)."""
    directory = directory / DIRECTORY
    states = _generator_states()
    if world_size() > 1:
        gathered: list[Any] = []
        dist.all_gather_object(gathered, states)
    else:
        gathered = [states]
    if not trainer.args.should_save:
        return
    directory.mkdir(exist_ok=True)
    paddle.save(gathered, str(directory / _rng_file()))
    if trainer.args.ignore_save_lr_and_optim:
        return
    paddle.save(optimizer_state(trainer.optimizer, trainer.model), str(directory / OPTIMIZER))
    paddle.save(trainer.lr_scheduler.state_dict(), str(directory / SCHEDULER))
    if trainer.do_grad_scaling:
        paddle.save(trainer.scaler.state_dict(), str(directory / SCALER))


def load_training_state(directory: Path, trainer: Any) -> None:
    """Give a trainer the optimizer, schedule and loss scale of a checkpoint.

    Raises:
        CheckpointError: the checkpoint holds none (it was saved without), or they do not fit.
    """
    directory = directory / DIRECTORY
    missing = [name for name in (OPTIMIZER, SCHEDULER) if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} has no {' and no '.join(missing)}: it was saved with ignore_save_lr_and_optim. It cannot be "
            "resumed; add ignore_load_lr_and_optim: true to start a fresh optimizer from its weights."
        )
    load_optimizer_state(
        trainer.optimizer, trainer.model, paddle.load(str(directory / OPTIMIZER)), directory / OPTIMIZER
    )
    trainer.lr_scheduler.set_state_dict(paddle.load(str(directory / SCHEDULER)))
    if trainer.do_grad_scaling and (directory / SCALER).is_file():
        trainer.scaler.load_state_dict(paddle.load(str(directory / SCALER), return_numpy=True))


def load_random_state(directory: Path) -> bool:
    """Set the random generators to where they were when a checkpoint was written.

    Returns:
        False when the checkpoint was written by another number of processes; the generators are left alone then.
    """
    path = directory / DIRECTORY / _rng_file()
    if not path.is_file():
        return False
    states = paddle.load(str(path), return_numpy=True)[dist.get_rank()]
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    paddle.framework.core.default_cpu_generator().set_state(states["cpu"])
    if paddle.get_device().startswith("gpu"):
        paddle.set_cuda_rng_state(states["device"])
    return True


def _rng_file() -> str:
    return "rng_state.pth" if world_size() == 1 else f"rng_state_{world_size()}.pth"


def _generator_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": paddle.framework.core.default_cpu_generator().get_state(),
        "device": paddle.get_cuda_rng_state() if paddle.get_device().startswith("gpu") else None,
    }
