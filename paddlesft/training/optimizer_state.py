"""The state of an optimizer under the names of the whole model's weights, out of and into any layout.

Paddle names parameters by a counter (``linear_3.w_0``), so its own state only fits a process that created its layers in
the same order, and silently starts from zero otherwise. Under sharding a rank has the state of some weights only, with
stage 3 that of a flat slice of each. Here every entry is ``NAME@KIND``: moments and float32 weights of a weight's shape
(``moment1_0``, ``master_weight``), and numbers such as ``beta1_pow_acc_0``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from paddlesft.errors import CheckpointError
from paddlesft.models.weights import CODE, DTYPE, PADDLE_LAYOUT, NewTensor, read_header, write_file
from paddlesft.parallel.division import Division, to_host, to_tensor

MASTER_WEIGHTS, MASTER_WEIGHT = "master_weights", "master_weight"
SLICE = "slice@"  # paddle's GroupShardedStage3 names the slice of a parameter so
LR_STATE = "LR_Scheduler"


@dataclass
class OwnState:
    """What this rank's optimizer keeps.

    Attributes:
        tensors: kind -> name of the weight -> tensor of its shape, or of its slice's.
        numbers: ``NAME@KIND`` -> other arrays.
    """

    tensors: dict[str, dict[str, paddle.Tensor]] = field(default_factory=dict)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)


def innermost(optimizer: Any) -> Any:
    """Return paddle's own optimizer inside what Fleet has put around it."""
    while True:
        inner = getattr(optimizer, "_inner_opt", None) or optimizer.__dict__.get("_optim")
        if inner is None or inner is optimizer:
            return optimizer
        optimizer = inner


def own_state(optimizer: Any, division: Division) -> OwnState:
    """Collect this rank's state.

    Args:
        optimizer: after at least one step; wrapped or not.
        division: of the model whose weights it trains.
    """
    names = _names(division)
    by_length = sorted(names, key=len, reverse=True)
    state = OwnState()
    for key, value in innermost(optimizer).state_dict().items():
        if key == LR_STATE:
            continue  # saved with the schedule
        if key == MASTER_WEIGHTS:
            state.tensors[MASTER_WEIGHT] = {names[name]: tensor for name, tensor in value.items() if name in names}
            continue
        owner = next((name for name in by_length if key.startswith(f"{name}_")), None)
        if owner is None:
            raise CheckpointError(
                f"The optimizer keeps {key}, which belongs to no weight by name. Fused state cannot be saved: leave "
                "tensor fusion out of sharding_parallel_config."
            )
        name, kind = names[owner], key[len(owner) + 1 :]
        own = division.own[name]
        if list(value.shape) in (list(own.shape), list(getattr(own, "fw_storage", own).shape)):
            state.tensors.setdefault(kind, {})[name] = value
        else:
            state.numbers[f"{name}@{kind}"] = to_host(value)
    return state


def _names(division: Division) -> dict[str, str]:
    """Paddle's names of the trained parameters, and of their slices -> names in the whole model."""
    trained = {tensor.name: name for name, tensor in division.own.items() if not tensor.stop_gradient}
    return trained | {f"{SLICE}{own}": name for own, name in trained.items()}


def write_whole_state(optimizer: Any, division: Division, path: Path | None) -> None:
    """Write the state of all ranks as one file of whole tensors, one in memory at a time; all ranks call it.

    Args:
        optimizer: after at least one step.
        division: of the model.
        path: of the file; None on all ranks but the first.
    """
    state = own_state(optimizer, division)
    everybody: list[Any] = [(list(state.tensors), state.numbers)]
    if dist.get_world_size() > 1:
        everybody = []
        dist.all_gather_object(everybody, (list(state.tensors), state.numbers))
    kinds = sorted({kind for theirs, _ in everybody for kind in theirs})
    numbers = _agreed([theirs for _, theirs in everybody])
    gatherings = {kind: division.gathering(state.tensors.get(kind, {})) for kind in kinds}

    def arrivals() -> Iterator[np.ndarray | None]:
        for gathering in gatherings.values():
            for _, array in gathering:
                yield array

    arriving = arrivals()
    if path is None:
        for _ in arriving:
            pass
        return
    tensors = {
        f"{name}@{kind}": NewTensor(DTYPE[part.dtype], part.whole_shape, lambda: next(arriving))  # in their order
        for kind, gathering in gatherings.items()
        for name, part in gathering.parts.items()
    }
    write_file(path, tensors | _numbers(numbers), PADDLE_LAYOUT)


def _agreed(everybody: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the numbers of all ranks, which have to be the same for the same weight."""
    numbers: dict[str, np.ndarray] = {}
    for theirs in everybody:
        for key, array in theirs.items():
            if not np.array_equal(numbers.setdefault(key, array), array):
                raise CheckpointError(
                    f"The optimizer keeps one number for each rank's part of a weight ({key}), which means nothing in "
                    "another layout. Set unified_checkpoint: false, or optim: adamw."
                )
    return numbers


def write_own_state(optimizer: Any, division: Division, path: Path) -> None:
    """Write this rank's state as it is."""
    state = own_state(optimizer, division)
    tensors = {
        f"{name}@{kind}": NewTensor(
            DTYPE[str(tensor.dtype).removeprefix("paddle.")], tuple(tensor.shape), lambda t=tensor: to_host(t)
        )
        for kind, held in state.tensors.items()
        for name, tensor in held.items()
    }
    write_file(path, tensors | _numbers(state.numbers), PADDLE_LAYOUT)


def _numbers(arrays: dict[str, np.ndarray]) -> dict[str, NewTensor]:
    return {key: NewTensor(CODE[array.dtype], array.shape, lambda a=array: a) for key, array in arrays.items()}


def read_state(optimizer: Any, division: Division, path: Path, whole: bool) -> None:
    """Give an optimizer the state that ``write_whole_state`` or ``write_own_state`` wrote.

    Args:
        optimizer: wrapped as it will be used; it may have done steps or not.
        division: of the model.
        path: of the file.
        whole: it holds whole tensors.

    Raises:
        CheckpointError: the state is not of these weights.
    """
    stored, _ = read_header(path)
    kinds: dict[str, list[str]] = {}
    for key in stored:
        name, kind = key.rsplit("@", 1)
        kinds.setdefault(name, []).append(kind)
    names = _names_to_fill(optimizer, division)
    wanted = set(names.values())
    missing = sorted(wanted - set(kinds))
    extra = sorted(set(kinds) - set(_names(division).values())) if whole and division.is_whole else []
    if missing or extra:
        example = f"no state for {missing[0]}" if missing else f"state for {extra[0]}, which is not trained now"
        raise CheckpointError(
            f"{path} does not fit the weights that this run trains ({example}; {len(missing)} missing, {len(extra)} "
            "left over). Resume with the config that wrote the checkpoint, or start anew in another output_dir."
        )
    inner = innermost(optimizer)
    own: dict[str, paddle.Tensor] = {}
    for parameter, name in names.items():
        for kind in kinds[name]:
            array = stored[f"{name}@{kind}"].mapped()
            if whole and array.shape == division.whole_shape(name):
                array = division.held(name, array)
            tensor = to_tensor(array, str(array.dtype))
            if kind == MASTER_WEIGHT:
                inner._master_weights[parameter] = tensor
            else:
                own[f"{parameter}_{kind}"] = tensor
    inner.set_state_dict(own)


def _names_to_fill(optimizer: Any, division: Division) -> dict[str, str]:
    """Paddle's names of what this rank's optimizer updates -> names in the whole model."""
    names: dict[str, str] = {}
    owner_of = _owners(optimizer)
    for name, tensor in division.own.items():
        if tensor.stop_gradient:
            continue
        if hasattr(tensor, "fw_storage"):
            names[f"{SLICE}{tensor.name}"] = name
        elif owner_of is None or owner_of[0].get(tensor.name, owner_of[1]) == owner_of[1]:
            names[tensor.name] = name
    return names


def _owners(optimizer: Any) -> tuple[dict[str, int], int] | None:
    """Which sharding rank updates each parameter (stages 1 and 2), and which this rank is; None without."""
    while optimizer is not None:
        attributes = vars(optimizer)
        if "_param2rank" in attributes:
            rank = attributes.get("_sharding_rank", attributes.get("_rank"))
            return optimizer._param2rank, rank
        inner = attributes.get("_inner_opt") or attributes.get("_optim")
        optimizer = None if inner is optimizer else inner
    return None
