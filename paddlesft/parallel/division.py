"""How the model of a running job lies on its ranks: what this one holds of each weight, and how the whole comes about.

Names are those of the whole model (or adapter) in a single process, whatever the rank's own layers are called. A weight
is whole on a rank, or one of the parts that tensor parallelism makes, or one of the flat slices of sharding stage 3;
and with pipelines, only some ranks have it at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.distributed.fleet.base import topology
from paddlenlp.peft import LoRAModel, PrefixModelForCausalLM

from paddlesft.models.families import family_of
from paddlesft.models.load import ONE_PROCESS
from paddlesft.models.shapes import Skeleton, full_name, skeleton_of
from paddlesft.models.tensor_division import (
    LOW_RANK,
    adapter_division,
    division_of_whole,
    tensor_parallel_actions,
)
from paddlesft.models.tensor_division import Division as TensorDivision
from paddlesft.models.weights import NUMPY

MESSAGE_NUMBERS = 16 * 1024 * 1024  # weights travel in pieces of this many numbers, so that no rank needs room for one
BFLOAT16 = NUMPY["BF16"]


@dataclass(frozen=True)
class Part:
    """What one rank holds of a weight.

    Attributes:
        shape: of the part; of the weight where it is a flat slice.
        dtype: name of the type.
        count: numbers in it.
        number: which part it is.
        parts: how many there are.
        division: how parts of tensor parallelism lie in the weight; None for whole weights and flat slices.
    """

    shape: tuple[int, ...]
    dtype: str
    count: int
    number: int = 0
    parts: int = 1
    division: TensorDivision | None = None

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.division.whole_shape(self.shape, self.parts) if self.division else self.shape


class Gathering:
    """Weights on their way from all ranks to the first, one at a time.

    Attributes:
        parts: one part of each weight, whose ``whole_shape`` and ``dtype`` describe it, in the order of arrival.
    """

    def __init__(self, tensors: Mapping[str, paddle.Tensor], held: Mapping[str, Part]) -> None:
        self._tensors = tensors
        self._rank = dist.get_rank()
        everybody: list[dict[str, Part]] = [dict(held)]
        if dist.get_world_size() > 1:
            everybody = []
            dist.all_gather_object(everybody, dict(held))
        self.parts: dict[str, Part] = {}
        self._sources: dict[str, dict[int, int]] = {}
        for rank, theirs in enumerate(everybody):
            for name, part in theirs.items():
                self.parts.setdefault(name, part)
                self._sources.setdefault(name, {}).setdefault(part.number, rank)
        for name, part in self.parts.items():
            if len(self._sources[name]) != part.parts:
                raise ValueError(f"{name}: ranks hold {len(self._sources[name])} of its {part.parts} parts")

    def __iter__(self) -> Iterator[tuple[str, np.ndarray | None]]:
        for name, part in self.parts.items():
            yield name, self._gather(name, part)

    def _gather(self, name: str, part: Part) -> np.ndarray | None:
        pieces = [self._fetch(name, part, self._sources[name][number]) for number in range(part.parts)]
        if self._rank != 0:
            return None
        if part.division is not None:
            return part.division.merge([lambda piece=piece: piece.reshape(part.shape) for piece in pieces])
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return whole[: int(np.prod(part.shape))].reshape(part.shape)

    @paddle.no_grad()
    def _fetch(self, name: str, part: Part, source: int) -> np.ndarray | None:
        """Bring a part from a rank to the first; by broadcasts, which need no connections of their own."""
        flat = self._tensors[name].detach().reshape([-1]) if self._rank == source else None
        if source == 0:
            return None if flat is None else to_host(flat)
        whole = None
        for begin in range(0, part.count, MESSAGE_NUMBERS):
            end = min(begin + MESSAGE_NUMBERS, part.count)
            piece = flat[begin:end] if flat is not None else paddle.empty([end - begin], dtype=part.dtype)
            if not piece.place.is_gpu_place() and paddle.get_device().startswith("gpu"):  # on the host, pinned
                piece = piece.cuda()
            dist.broadcast(piece, src=source)
            if self._rank == 0:
                array = to_host(piece)
                whole = np.empty(part.count, array.dtype) if whole is None else whole
                whole[begin:end] = array
        return whole


class Division:
    """How a model being trained is divided among the ranks of the run.

    Args:
        model: bare, or with a LoRA or prefix adapter; whole, a tensor-parallel part, a pipeline stage, or all of it.

    Attributes:
        own: name in the whole model -> this rank's tensor: the weights of a bare model without buffers, each once; of a
            model with an adapter, the adapter's.
    """

    def __init__(self, model: paddle.nn.Layer) -> None:
        self._base = model.model if isinstance(model, LoRAModel | PrefixModelForCausalLM) else model
        self._family = family_of(self._base.config)
        self._degree = max(self._base.config.tensor_parallel_degree, 1)
        layout = topology._HYBRID_PARALLEL_GROUP
        self._tensor_rank = layout.get_model_parallel_rank() if layout is not None and self._degree > 1 else 0
        self._sharding_rank = layout.get_sharding_parallel_rank() if layout is not None else 0
        self._sharding_degree = layout.get_sharding_parallel_world_size() if layout is not None else 1
        self._is_prefix = isinstance(model, PrefixModelForCausalLM)
        if self._is_prefix:
            self.own = dict(model.prefix_encoder.state_dict())
            divisions = {}  # every rank has all of it
        elif isinstance(model, LoRAModel):
            trained = model.get_trainable_state_dict()
            self.own = {self._full_name(name): tensor for name, tensor in trained.items()}
            divisions = {name: self._of_adapter(name, tensor) for name, tensor in self.own.items()}
        else:
            self.own = self._each_once()
            divisions = {name: self._of_weight(name, tensor) for name, tensor in self.own.items()}
        self._divisions = {name: division for name, division in divisions.items() if division is not None}

    @property
    def is_whole(self) -> bool:
        """Whether each rank has every weight complete, so that the first can write them alone; alike on all ranks."""
        return self._degree == 1 and not self._is_stage and not any(map(self._is_sliced, self.own))

    @property
    def has_parts(self) -> bool:
        """Whether ranks hold parts of a whole model or adapter that a merge of files can put together."""
        return (self._degree > 1 or self._is_stage) and not self._is_prefix

    @cached_property
    def buffers(self) -> dict[str, np.ndarray]:
        """Entries of a whole model's state that are computed, not trained."""
        return self._skeleton.buffers

    @cached_property
    def second_names(self) -> dict[str, str]:
        """Further names that the model's state has for weights on this rank -> their names in ``own``."""
        names = {id(tensor): name for name, tensor in self.own.items()}
        state = {self._full_name(name): value for name, value in self._base.state_dict().items()}
        return {name: names[id(v)] for name, v in state.items() if names.get(id(v), name) != name}

    def whole_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight that this rank holds (a part of)."""
        shape = tuple(self.own[name].shape)
        return self._divisions[name].whole_shape(shape, self._degree) if name in self._divisions else shape

    def part(self, name: str, whole: np.ndarray) -> np.ndarray:
        """Cut out of a whole weight what this rank's layers compute with (all of it under sharding)."""
        division = self._divisions.get(name)
        return whole if division is None else division.part(whole, self._tensor_rank, self._degree)

    def held(self, name: str, whole: np.ndarray) -> np.ndarray:
        """Return what this rank keeps of a whole weight: ``part``, or under stage 3 its flat slice of it."""
        if not self._is_sliced(name):
            return self.part(name, whole)
        slice_size = int(np.prod(self.own[name].fw_storage.shape))
        begin = slice_size * self._sharding_rank
        mine = whole.reshape(-1)[begin : begin + slice_size]
        return np.concatenate([mine, np.zeros(slice_size - mine.size, mine.dtype)])

    def put(self, name: str, whole: np.ndarray) -> None:
        """Set this rank's tensor from a whole weight."""
        tensor = self.own[name].fw_storage if self._is_sliced(name) else self.own[name]
        tensor.set_value(to_tensor(self.held(name, whole), tensor.dtype))

    def gathering(self, tensors: Mapping[str, paddle.Tensor] | None = None) -> Gathering:
        """Let all ranks agree on what will travel; all of them call it.

        Args:
            tensors: by the names of ``own``, each of its shape (or of that of its slice): weights, or something that
                belongs to them, such as moments of an optimizer. A rank gives what it has; several may have the same.
                None for the weights.
        """
        if tensors is None:
            tensors = {n: t.fw_storage if self._is_sliced(n) else t for n, t in self.own.items()}
        return Gathering(tensors, {name: self._describe(name, tensor) for name, tensor in tensors.items()})

    def gather(self, tensors: Mapping[str, paddle.Tensor] | None = None) -> Iterator[tuple[str, np.ndarray | None]]:
        """Put tensors together, one after the other; all ranks call it and run through it to the end.

        Args:
            tensors: see ``gathering``.

        Yields:
            Name and whole array, in the same order on all ranks; on the first rank only, on the others None.
        """
        yield from self.gathering(tensors)

    # ---- what this rank has ----

    def _describe(self, name: str, tensor: paddle.Tensor) -> Part:
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("paddle.")
        count = int(np.prod(shape))
        if self._is_sliced(name) and shape != tuple(self.own[name].shape):
            return Part(tuple(self.own[name].shape), dtype, count, self._sharding_rank, self._sharding_degree)
        division = self._divisions.get(name)
        if division is not None:
            return Part(shape, dtype, count, self._tensor_rank, self._degree, division)
        return Part(shape, dtype, count)

    def _is_sliced(self, name: str) -> bool:
        return getattr(self.own[name], "status", None) == "part" and hasattr(self.own[name], "fw_storage")

    # ---- names and divisions ----

    @cached_property
    def _config(self) -> dict[str, Any]:
        return self._base.config.to_dict() | ONE_PROCESS

    @cached_property
    def _skeleton(self) -> Skeleton:
        return skeleton_of(self._config)

    @cached_property
    def _actions(self) -> dict[str, Any]:
        return tensor_parallel_actions(self._config, self._family, [*self._skeleton.shapes], self._degree)

    @property
    def _is_stage(self) -> bool:
        return hasattr(self._base, "_single_to_pp_mapping")  # PipelinePretrainedModel

    def _full_name(self, name: str) -> str:
        if not self._is_stage:
            return name
        layer, _, kind = name.rpartition(".")
        if kind in LOW_RANK:
            return f"{full_name(f'{layer}.weight', self._family, self._skeleton).removesuffix('.weight')}.{kind}"
        full = full_name(name, self._family, self._skeleton)
        return self._skeleton.second_names.get(full, full)

    def _each_once(self) -> dict[str, paddle.Tensor]:
        trained = {id(parameter) for parameter in self._base.parameters()}
        state = {name: value for name, value in self._base.state_dict().items() if id(value) in trained}
        order = sorted(state, key=lambda name: not self._full_name(name).startswith(f"{self._family.base_prefix}."))
        first: dict[int, str] = {}
        for name in order:
            first.setdefault(id(state[name]), name)
        return {self._full_name(name): value for name, value in state.items() if first[id(value)] == name}

    def _of_weight(self, name: str, tensor: paddle.Tensor) -> TensorDivision | None:
        if self._degree == 1:
            return None
        whole = self._skeleton.shapes[name]
        if tuple(tensor.shape) == whole or name not in self._actions:
            return None
        return division_of_whole(self._actions[name], whole, self._degree)

    def _of_adapter(self, name: str, tensor: paddle.Tensor) -> TensorDivision | None:
        layer, _, kind = name.rpartition(".")
        if kind not in LOW_RANK:
            return self._of_weight(name, tensor)
        weight = f"{layer}.weight"
        if self._degree == 1 or weight not in self._actions:
            return None
        whole = self._skeleton.shapes[weight]
        if tensor.shape[0 if kind == "lora_A" else -1] == whole[0 if kind == "lora_A" else -1]:
            return None
        return adapter_division(self._actions[weight], kind, whole, self._degree)


def to_host(tensor: paddle.Tensor) -> np.ndarray:
    """Copy a tensor into an array of its own type (bfloat16 from ml_dtypes)."""
    array = tensor.numpy()
    return array.view(BFLOAT16) if tensor.dtype == paddle.bfloat16 else array


def to_tensor(array: np.ndarray, dtype: Any) -> paddle.Tensor:
    """Copy an array, of ml_dtypes' bfloat16 too, into a tensor of a type."""
    if array.dtype == BFLOAT16:
        array = array.astype(np.float32)
    return paddle.to_tensor(array).astype(dtype)
