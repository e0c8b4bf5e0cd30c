"""Which part of each weight a tensor-parallel rank holds.

PaddleNLP says it only by functions that merge a list of parts (``_get_tensor_parallel_mappings``). Each is asked once,
with numbers in place of the weights: where number i of rank r comes out is where it belongs. Merging and splitting are
then copies of blocks, of any type of weight, without further memory.

i = rows, o = columns of a part; n = degree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from paddlesft.models.family import Family

LOW_RANK = ("lora_A", "lora_B")
Action = Callable[[list[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Block:
    """``length`` entries along the divided axis: at ``inside`` in rank ``rank``'s part, at ``whole`` in the weight."""

    rank: int
    inside: int
    whole: int
    length: int


@dataclass(frozen=True)
class Division:
    """How one weight is divided.

    Attributes:
        axis: the divided axis; -1 counts from the end.
        blocks: every entry of that axis, once.
    """

    axis: int
    blocks: tuple[Block, ...]

    def whole_shape(self, part: Sequence[int], degree: int) -> tuple[int, ...]:
        """Return the shape of the weight from that of a part."""
        shape = list(part)
        shape[self.axis] *= degree
        return tuple(shape)

    def merge(self, parts: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
        """Join the parts, one of which is in memory at a time beside the result.

        Args:
            parts: one function per rank that gives its part.
        """
        whole = None
        for rank, make in enumerate(parts):
            part = None  # give back the one before
            part = make()
            if whole is None:
                whole = np.empty(self.whole_shape(part.shape, len(parts)), part.dtype)
            for block in self.blocks:
                if block.rank == rank:
                    _along(whole, self.axis, block.whole, block.length)[...] = _along(
                        part, self.axis, block.inside, block.length
                    )
        return whole

    def part(self, whole: np.ndarray, rank: int, degree: int) -> np.ndarray:
        """Cut one rank's part out of a weight."""
        shape = list(whole.shape)
        shape[self.axis] //= degree
        part = np.empty(shape, whole.dtype)
        for block in self.blocks:
            if block.rank == rank:
                _along(part, self.axis, block.inside, block.length)[...] = _along(
                    whole, self.axis, block.whole, block.length
                )
        return part

    def holds(self, whole: np.ndarray, part: np.ndarray, rank: int, from_zero: bool = False) -> bool:
        """Tell whether a weight holds a rank's part bit for bit; nothing is copied.

        Args:
            whole: the weight.
            part: what the rank held.
            rank: its number.
            from_zero: zeros in the weight fit anything (padding that was cut off).
        """
        whole, part = as_bits(whole), as_bits(part)
        for block in self.blocks:
            if block.rank == rank:
                there = _along(whole, self.axis, block.whole, block.length)
                held = _along(part, self.axis, block.inside, block.length)
                if not (np.all((there == held) | (there == 0)) if from_zero else np.array_equal(there, held)):
                    return False
        return True


def as_bits(array: np.ndarray) -> np.ndarray:
    """View numbers as unsigned integers, so that a NaN equals itself and 0.0 does not equal -0.0."""
    return array.view(f"u{array.dtype.itemsize}")


def _along(array: np.ndarray, axis: int, start: int, length: int) -> np.ndarray:
    return array[..., start : start + length] if axis == -1 else array[start : start + length]


def division_of(action: Action, part_shape: Sequence[int], degree: int) -> Division:
    """Find out how PaddleNLP divides a weight, from its function that joins the parts.

    Args:
        action: takes the parts of all ranks, gives the weight.
        part_shape: shape of one part, [o] or [i, o].
        degree: number of ranks n.
    """
    columns = part_shape[-1]
    vector = len(part_shape) == 1
    numbers = [np.arange(columns) + rank * columns for rank in range(degree)]
    joined = action(numbers if vector else [row[None, :] for row in numbers])
    if vector or joined.shape[0] == 1:
        return Division(-1, _blocks(np.asarray(joined).reshape(-1), columns))
    rows = part_shape[0]
    joined = action([(np.arange(rows) + rank * rows)[:, None] for rank in range(degree)])
    return Division(0, _blocks(np.asarray(joined).reshape(-1), rows))


def division_of_whole(action: Action, shape: Sequence[int], degree: int) -> Division | None:
    """Find out how PaddleNLP divides a weight of which the whole is known.

    Args:
        action: takes the parts of all ranks, gives the weight.
        shape: of the whole, [o] or [i, o].
        degree: number of ranks n.

    Returns:
        The division; None when its axis cannot be divided by n.
    """
    axis = division_of(action, [3 * degree] * len(shape), degree).axis  # 3: some weights hold three projections
    if shape[axis] % degree:
        return None
    part = list(shape)
    part[axis] //= degree
    return division_of(action, part, degree)


def adapter_division(action: Action, kind: str, weight: Sequence[int], degree: int) -> Division | None:
    """Return how A [in, r] or B [r, out] is divided: as the weight's inputs or outputs are; None where not at all.

    PaddleNLP joins every B in the order of the ranks. Where the layer's weight holds several projections that are
    divided one by one (query, key and value in one matrix), B's columns have to follow the weight's.

    Args:
        action: joins the parts of the layer's weight.
        kind: "lora_A" or "lora_B"; another for a weight that is trained as a whole.
        weight: shape of the layer's whole weight, [in, out].
        degree: number of ranks.
    """
    found = division_of_whole(action, weight, degree)
    axis = {"lora_A": 0, "lora_B": -1}.get(kind)
    return found if found and axis in (None, found.axis) else None


def _blocks(order: np.ndarray, size: int) -> tuple[Block, ...]:
    """Turn "entry j of the weight is number order[j]" into blocks of consecutive numbers of one rank."""
    steps = (np.diff(order) != 1) | (order[1:] % size == 0)
    starts = [0, *(np.flatnonzero(steps) + 1).tolist(), len(order)]
    return tuple(Block(int(order[a]) // size, int(order[a]) % size, a, b - a) for a, b in pairwise(starts))


def tensor_parallel_actions(
    config: Mapping[str, Any], family: Family, names: Sequence[str], degree: int
) -> dict[str, Action]:
    """Return PaddleNLP's functions that join the parts of a model's weights, by the names of the weights.

    Args:
        config: content of config.json.
        family: the model's row of the family table.
        names: names of the weights.
        degree: number of tensor-parallel ranks.

    Returns:
        One function per divided weight; weights without one are whole in every rank.
    """
    import paddlenlp.transformers as zoo

    full = getattr(zoo, family.config_class).from_dict(dict(config) | {"tensor_parallel_degree": degree})
    family.fix_config(full)
    cls = getattr(zoo, family.causal_lm)
    actions = cls.get_tensor_parallel_convert_actions(full, list(names), is_split=False, ignore_error=True)
    plan = family.plan(config)
    for tensor in (*plan.embedding, *plan.norm):  # its rules miss OPT's project_in, which they look for in the decoder
        if tensor.split is not None and tensor.shape[tensor.split] % degree == 0:
            actions.setdefault(tensor.name, partial(np.concatenate, axis=tensor.split))
    for tensor in plan.tensors():  # and biases of ChatGLM2's feed-forward block, which lie as the weight's columns do
        weight = tensor.name.removesuffix("bias") + "weight"
        if tensor.split is not None and tensor.name.endswith(".bias") and weight in actions:
            actions.setdefault(tensor.name, actions[weight])
    return {name: actions[name] for name in names if name in actions}


def prefix_divisions(
    config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], degree: int
) -> dict[str, Division]:
    """Return how the encoder of a prefix is divided (``PrefixModelForCausalLM``): its rows and the hidden layer.

    Args:
        config: content of prefix_config.json.
        shapes: shapes of one rank's parts.
        degree: number of tensor-parallel ranks.
    """
    if (config.get("tensor_parallel_degree") or 1) <= 1:
        return {}

    def plain(name: str, axis: int) -> Division:
        size = shapes[name][axis]
        return Division(axis, tuple(Block(rank, 0, rank * size, size) for rank in range(degree)))

    axes = {"0.weight": 0}
    if config.get("prefix_projection"):
        axes |= {"1.weight": -1, "1.bias": -1, "3.weight": 0}
    return {name: plain(name, axis) for name, axis in axes.items() if name in shapes}


def prefix_column_order(config: Mapping[str, Any], degree: int) -> np.ndarray:
    """Return where the columns of a prefix trained with tensor parallelism stand in one trained without.

    A rank takes its n-th of the encoder's output and reads it as all layers' keys and values of *its* heads; a single
    process reads the whole output as all layers' keys and values of all heads. Column j of the whole is column
    ``order[j]`` of the output.

    Args:
        config: content of prefix_config.json.
        degree: number of tensor-parallel ranks.
    """
    heads = config.get("multi_query_group_num") or config["num_attention_heads"]
    size = config["hidden_size"] // config["num_attention_heads"]
    both = config["num_hidden_layers"] * 2
    output = np.arange(both * heads * size).reshape(degree, both, heads // degree, size)
    return output.transpose(1, 0, 2, 3).reshape(-1)
