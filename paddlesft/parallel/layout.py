"""The layout of a run: how many processes share what, and which rank holds which part.

Four axes, as in Paddle's Fleet. Tensor: each layer's matrices (arXiv:1909.08053). Pipeline: the stack of layers
(arXiv:2104.04473). Sharding: optimizer state, gradients and weights by stage 1, 2, 3 (ZeRO, arXiv:1910.02054). Data:
rows of the batch, which sharding ranks divide too. Sequence parallelism (arXiv:2205.05198) lies on the tensor axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from paddlesft.parallel.stages import stage_layers

AXES = ("data", "pipeline", "sharding", "tensor")
ORDERS = {  # outermost first: ranks that differ in the last axis only are neighbours (PaddleNLP's TrainingArguments)
    "pp_first": ("data", "pipeline", "sharding", "tensor"),
    "sharding_first": ("data", "sharding", "pipeline", "tensor"),
}
PADDLE_NAMES = {"data": "data", "pipeline": "pipe", "sharding": "sharding", "tensor": "model"}  # in Fleet's topology


@dataclass(frozen=True)
class RankRow:
    """What one rank holds, in words; one row of the table.

    Attributes:
        rank: the process.
        place: its coordinates on the axes that are longer than one.
        layers: decoder layers, and what stands in front of or behind them.
        heads: attention heads of each of its layers.
        vocabulary: rows of embedding and head.
        state: share of optimizer state, gradients and weights.
        batch: rows of each step's batch.
    """

    rank: int
    place: str
    layers: str
    heads: str
    vocabulary: str
    state: str
    batch: str


@dataclass(frozen=True)
class Layout:
    """Degrees of one run, checked by ``check_layout``.

    Attributes:
        data, pipeline, sharding, tensor: processes along each axis; their product is the world size.
        stage: what the sharding ranks share: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights.
        virtual: chunks of each pipeline stage.
        sequence_parallel: the tensor ranks divide activations by sequence where they would repeat them.
        order: a key of ``ORDERS``.
        micro_batch: rows of one forward pass on one rank.
        accumulation: micro-batches of one optimizer step on one rank.
        layers, heads, kv_heads, vocab: of the model.
        whole_vocabulary: the tensor degree does not divide the vocabulary, which each tensor rank holds whole.
        notices: what the user should know although it is allowed.
    """

    data: int = 1
    pipeline: int = 1
    sharding: int = 1
    tensor: int = 1
    stage: int = 0
    virtual: int = 1
    sequence_parallel: bool = False
    order: str = "pp_first"
    micro_batch: int = 1
    accumulation: int = 1
    layers: int = 1
    heads: int = 1
    kv_heads: int = 1
    vocab: int = 1
    whole_vocabulary: bool = False
    notices: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return prod(self.degree(axis) for axis in AXES)

    @property
    def data_ranks(self) -> int:
        """Ranks with rows of their own: data times sharding."""
        return self.data * self.sharding

    @property
    def global_batch(self) -> int:
        """Rows of one optimizer step."""
        return self.micro_batch * self.accumulation * self.data_ranks

    def degree(self, axis: str) -> int:
        """Return the number of processes along an axis."""
        return getattr(self, axis)

    def coordinates(self, rank: int) -> dict[str, int]:
        """Return the place of a rank on every axis.

        Raises:
            ValueError: there is no such rank.
        """
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is not among the ranks 0 to {self.world_size - 1}")
        place = {}
        for axis in reversed(ORDERS[self.order]):
            rank, place[axis] = divmod(rank, self.degree(axis))
        return {axis: place[axis] for axis in AXES}

    def rank_at(self, **place: int) -> int:
        """Return the rank at a place; axes that are left out count as 0."""
        rank = 0
        for axis in ORDERS[self.order]:
            rank = rank * self.degree(axis) + place.get(axis, 0)
        return rank

    def groups(self, axis: str) -> list[list[int]]:
        """Return the groups of ranks that differ on one axis only, in the order in which Fleet creates them."""
        others = [other for other in ORDERS[self.order] if other != axis]
        places = product(*(range(self.degree(other)) for other in others))
        return [
            [self.rank_at(**dict(zip(others, place)), **{axis: i}) for i in range(self.degree(axis))]
            for place in places
        ]

    def data_rank(self, rank: int) -> int:
        """Return which of the ``data_ranks`` shares of the batch a rank works on; the same for all that share it."""
        place = self.coordinates(rank)
        return place["data"] * self.sharding + place["sharding"]

    def batch_rows(self, rank: int) -> list[range]:
        """Return the rows of a full step's batch that a rank works on, one range for each micro-batch."""
        first = self.data_rank(rank)
        starts = ((i * self.data_ranks + first) * self.micro_batch for i in range(self.accumulation))
        return [range(start, start + self.micro_batch) for start in starts]

    def steps_per_epoch(self, rows: int) -> int:
        """Return the optimizer steps of one pass over ``rows`` rows; the last may be smaller."""
        return -(-rows // self.global_batch)

    def stage_chunks(self, stage: int) -> list[range]:
        """Return the decoder layers of a pipeline stage, one range for each virtual stage."""
        return stage_layers(self.layers, self.pipeline, self.virtual)[stage]

    def table(self, ranks: range | None = None) -> list[RankRow]:
        """Return what each rank holds.

        Args:
            ranks: the ranks to show; all when None.
        """
        return list(self._rows(ranks if ranks is not None else range(self.world_size)))

    def _rows(self, ranks: range) -> Iterator[RankRow]:
        for rank in ranks:
            place = self.coordinates(rank)
            shown = [f"{axis} {place[axis]}" for axis in AXES if self.degree(axis) > 1]
            yield RankRow(
                rank=rank,
                place=", ".join(shown) or "alone",
                layers=self._layers(place["pipeline"]),
                heads=self._share(place["tensor"], self.heads, "query") + self._kv(place["tensor"]),
                vocabulary=self._vocabulary(place),
                state=self._state(place["sharding"]),
                batch=self._batch(rank),
            )

    def _layers(self, stage: int) -> str:
        parts = [_span(chunk) for chunk in self.stage_chunks(stage)]
        front = ["embedding"] if stage == 0 else []
        behind = ["norm, head"] if stage == self.pipeline - 1 else []
        return ", ".join([*front, *parts, *behind])

    def _share(self, i: int, whole: int, what: str) -> str:
        size = whole // self.tensor
        return f"{what} {_span(range(i * size, (i + 1) * size))}"

    def _kv(self, i: int) -> str:
        return "" if self.kv_heads == self.heads else ", " + self._share(i, self.kv_heads, "key/value")

    def _vocabulary(self, place: dict[str, int]) -> str:
        if place["pipeline"] not in (0, self.pipeline - 1):
            return "-"
        size = self.vocab if self.whole_vocabulary else self.vocab // self.tensor
        first = 0 if self.whole_vocabulary else place["tensor"] * size
        return _span(range(first, first + size))

    def _state(self, i: int) -> str:
        if not self.stage or self.sharding == 1:
            return "all"
        shared = ("optimizer state", "optimizer state, gradients", "optimizer state, gradients, weights")
        return f"{shared[self.stage - 1]}: part {i} of {self.sharding}"

    def _batch(self, rank: int) -> str:
        rows = [_span(part) for part in self.batch_rows(rank)[:3]]
        return ", ".join(rows) + (", ..." if self.accumulation > 3 else "")

    def __str__(self) -> str:
        return describe(self)


def describe(layout: Layout) -> str:
    """Say a layout in the keys of a config: ``tensor_parallel_degree 2, sharding stage1 x 4``."""
    parts = []
    if layout.tensor > 1:
        parts.append(f"tensor_parallel_degree {layout.tensor}")
    if layout.sequence_parallel:
        parts.append("sequence_parallel")
    if layout.pipeline > 1:
        parts.append(f"pipeline_parallel_degree {layout.pipeline}")
    if layout.virtual > 1:
        parts.append(f"virtual_pp_degree {layout.virtual}")
    if layout.sharding > 1:
        parts.append(f"sharding stage{layout.stage}, sharding_parallel_degree {layout.sharding}")
    if layout.data > 1 or not parts:
        parts.append(f"data parallel {layout.data}" if layout.data > 1 else "one process")
    return ", ".join(parts)


def _span(numbers: range) -> str:
    if len(numbers) == 0:
        return "none"
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
