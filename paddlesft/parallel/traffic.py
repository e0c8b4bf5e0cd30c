"""Bytes that a card sends in one optimizer step, for each axis of a layout, computed and not measured.

Collectives are counted as rings: of n bytes over g ranks an all-reduce sends ``2 (g - 1) / g n``, an all-gather, a
reduce-scatter, a reduce to changing owners or a broadcast from them ``(g - 1) / g n``.

What is sent: gradients (data); gradients and weights (sharding: ZeRO, arXiv:1910.02054, section 7); activations of each
layer (tensor: Megatron-LM, arXiv:1909.08053, section 3, and arXiv:2205.05198, section 4.2.2); activations where stages
meet (pipeline: arXiv:2104.04473). How often follows Paddle: q, k, v, gate and up are matrices of their own, and each
sums the gradient of its input; stage 2 reduces with every micro-batch; stage 3 gathers weights twice and all-reduces
gradients with every micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from paddlesft.models.tensor_plans import TensorPlan
from paddlesft.parallel.estimate import mask_bytes, stage_numbers
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.workload import Workload


@dataclass(frozen=True)
class Traffic:
    """What a card sends along one axis in one optimizer step; the busiest card is counted.

    Attributes:
        axis: of the layout.
        bytes: sent by one card.
        what: what travels, in words.
    """

    axis: str
    bytes: int
    what: str


def estimate_traffic(layout: Layout, plan: TensorPlan, work: Workload) -> list[Traffic]:
    """Return the traffic of every axis that is longer than one.

    Args:
        layout: degrees and micro-batches.
        plan: the model's weights.
        work: number formats, what is trained, rows.
    """
    sent = {
        "data": (data_bytes, "gradients, once a step"),
        "sharding": (sharding_bytes, _SHARDING[layout.stage]),
        "tensor": (tensor_bytes, "activations of every layer and micro-batch"),
        "pipeline": (pipeline_bytes, "activations where stages meet"),
    }
    return [
        Traffic(axis, round(max(count(layout, plan, work, stage) for stage in range(layout.pipeline))), what)
        for axis, (count, what) in sent.items()
        if layout.degree(axis) > 1
    ]


_SHARDING = (
    "",
    "gradients and new weights, once a step",
    "gradients of every micro-batch, new weights once a step",
    "weights twice and gradients, every micro-batch",
)


def crosses_nodes(layout: Layout, axis: str, cards_per_node: int) -> bool:
    """Whether any group of an axis has ranks on two nodes; ranks fill one node after the other."""
    return any(len({rank // cards_per_node for rank in group}) > 1 for group in layout.groups(axis))


def all_reduce(size: float, ranks: int) -> float:
    """Return what one rank sends in a ring all-reduce of ``size`` bytes."""
    return 2 * (ranks - 1) / ranks * size


def one_way(size: float, ranks: int) -> float:
    """Return what one rank sends in a ring all-gather, reduce-scatter, reduce or broadcast of ``size`` bytes."""
    return (ranks - 1) / ranks * size


def data_bytes(layout: Layout, plan: TensorPlan, work: Workload, stage: int) -> float:
    """Return the bytes of the data axis: the gradients are added up once a step."""
    _, trained = stage_numbers(layout, plan, work, stage)
    return all_reduce(trained * work.gradient_bytes, layout.data)


def sharding_bytes(layout: Layout, plan: TensorPlan, work: Workload, stage: int) -> float:
    """Return the bytes of the sharding axis, by its stage."""
    held, trained = stage_numbers(layout, plan, work, stage)
    n, m = layout.sharding, layout.accumulation
    gradients, weights = trained * work.gradient_bytes, trained * work.weight_bytes
    if layout.stage == 3:
        return m * (2 * one_way(held * work.weight_bytes, n) + all_reduce(gradients, n))
    return one_way(gradients, n) * (m if layout.stage == 2 else 1) + one_way(weights, n)


def tensor_bytes(layout: Layout, plan: TensorPlan, work: Workload, stage: int) -> float:
    """Return the bytes of the tensor axis: sums of activations in both directions."""
    t = layout.tensor
    tokens = layout.micro_batch * work.length
    hidden = tokens * plan.hidden * work.activation_bytes
    columns, rows = plan.column_matrices, plan.row_matrices
    half = {"none": 0.0, "core_attn": 0.0, "full_attn": 0.5, "full": 1.0}[work.recompute]  # forward once more
    if layout.sequence_parallel:
        again = columns if work.regather else 0
        per_layer = one_way(hidden, t) * ((1 + half) * (columns + rows) + columns + rows + again)
    else:
        per_layer = all_reduce(hidden, t) * ((1 + half) * rows + columns)
    if work.method == "lora":  # sums of the narrow activations between A and B
        per_layer += all_reduce(tokens * work.lora_rank * work.activation_bytes, t) * (rows + columns)
    layers = sum(len(chunk) for chunk in layout.stage_chunks(stage))
    outer = 0.0
    if stage == 0 and not layout.whole_vocabulary:
        outer += all_reduce(hidden, t)
    if stage == layout.pipeline - 1 and not layout.whole_vocabulary:
        outer += all_reduce(hidden, t)
        if not work.divided_logits:
            outer += one_way(tokens * plan.vocab * work.activation_bytes, t)
    return layout.accumulation * (layers * per_layer + outer)


def pipeline_bytes(layout: Layout, plan: TensorPlan, work: Workload, stage: int) -> float:
    """Return the bytes of the pipeline axis: activations forward, their gradients back, and the attention mask."""
    p, v = layout.pipeline, layout.virtual
    hidden = layout.micro_batch * work.length * plan.hidden * work.activation_bytes
    if layout.sequence_parallel:
        hidden /= layout.tensor
    mask = 0 if work.flash_attention else mask_bytes(layout, work)
    forward = v - (stage == p - 1)  # the last chunk sends nothing on
    backward = v - (stage == 0)
    sent = layout.accumulation * (forward * (hidden + mask) + backward * hidden)
    if not plan.head and stage in (0, p - 1) and work.method == "full":  # two copies of one matrix
        sent += all_reduce(plan.table.local_size(layout.tensor) * work.gradient_bytes, 2)
    return sent
