"""Layouts that fit a machine, quickest first, by computed memory, traffic and arithmetic: a place to begin, no promise.

The time of a step is arithmetic at an assumed speed, the pipeline's idle time (arXiv:2104.04473, section 2.2), and what
is sent over the slowest link that an axis uses, one after the other. Real runs overlap some of it and waste more
elsewhere: what counts is the order, not the seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from paddlesft.models.family import Family
from paddlesft.models.tensor_plans import TensorPlan
from paddlesft.parallel.check_layout import layout_of
from paddlesft.parallel.estimate import Memory, estimate_memory, worst_card
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.layout_rules import LayoutRequest, accumulation_for, divisors, find_layout_problems
from paddlesft.parallel.traffic import Traffic, crosses_nodes, estimate_traffic
from paddlesft.parallel.workload import Workload


@dataclass(frozen=True)
class Machine:
    """What the cards and their links are assumed to do.

    Attributes:
        cards_per_node: cards of one machine.
        memory: bytes of a card that a run may fill.
        arithmetic: operations a card really does in a second.
        inside, between: bytes that a card sends in a second to cards of its own node, and of others.
    """

    cards_per_node: int = 8
    memory: float = 72e9
    arithmetic: float = 125e12
    inside: float = 300e9
    between: float = 25e9


@dataclass(frozen=True)
class Suggestion:
    """A layout that works, with what it costs.

    Attributes:
        layout: the degrees.
        work: the workload, with the recompute that was chosen.
        memory: of the fullest card.
        traffic: by axis.
        arithmetic_seconds, idle_seconds, sending_seconds: of a step, computed.
    """

    layout: Layout
    work: Workload
    memory: Memory
    traffic: tuple[Traffic, ...]
    arithmetic_seconds: float
    idle_seconds: float
    sending_seconds: float

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.arithmetic_seconds + self.idle_seconds + self.sending_seconds


def suggest_layouts(
    plan: TensorPlan, family: Family, work: Workload, world_size: int, global_batch: int, machine: Machine
) -> list[Suggestion]:
    """Return the layouts of a world size that fit, quickest first.

    Args:
        plan: the model's weights.
        family: its row.
        work: number formats, what is trained, rows; recompute is tried off and full.
        world_size: cards.
        global_batch: rows of an optimizer step, with one row in a micro-batch.
        machine: memory, arithmetic and links.
    """
    found = [
        one
        for layout in _layouts(plan, family, work, world_size, global_batch)
        for recompute in ("none", "full")
        if (one := cost_of(layout, plan, replace(work, recompute=recompute), machine)).memory.total <= machine.memory
    ]
    return sorted(found, key=lambda one: (one.seconds, one.memory.total))


def simplest(found: list[Suggestion], slack: float = 0.05) -> Suggestion:
    """Return the simplest of the layouts that are nearly as quick as the quickest.

    Args:
        found: of ``suggest_layouts``, not empty.
        slack: how much slower it may be.
    """
    quick = [one for one in found if one.seconds <= found[0].seconds * (1 + slack)]
    return min(quick, key=_parts)


def _parts(one: Suggestion) -> tuple[int, int, float]:
    layout = one.layout
    model = (layout.tensor > 1) + (layout.pipeline > 1) + layout.sequence_parallel
    return model, (layout.sharding > 1) + (layout.data > 1), one.seconds


def cost_of(layout: Layout, plan: TensorPlan, work: Workload, machine: Machine) -> Suggestion:
    """Return a layout with its memory, traffic and computed time of a step."""
    traffic = tuple(estimate_traffic(layout, plan, work))
    arithmetic = operations(plan, work, layout.global_batch) / (layout.world_size * machine.arithmetic)
    idle = (layout.pipeline - 1) / (layout.accumulation * layout.virtual)
    sending = sum(
        one.bytes / (machine.between if crosses_nodes(layout, one.axis, machine.cards_per_node) else machine.inside)
        for one in traffic
    )
    return Suggestion(
        layout=layout,
        work=work,
        memory=worst_card(estimate_memory(layout, plan, work)),
        traffic=traffic,
        arithmetic_seconds=arithmetic,
        idle_seconds=arithmetic * idle,
        sending_seconds=sending,
    )


def operations(plan: TensorPlan, work: Workload, rows: int) -> float:
    """Return the floating-point operations of a step.

    Two for each weight and token forward, two for the gradient of the activations, two for that of the weights where
    they are trained; attention ``4 s a d`` a token and layer forward, half of it as it is causal, and twice backward
    (Narayanan et al. 2021, arXiv:2104.04473, appendix). Full recompute is one more forward pass.
    """
    tokens = rows * work.length
    head = plan.table if not plan.head else plan.head[0]
    weights = plan.layers * sum(tensor.size for tensor in plan.layer) + head.size
    attention = 2 * work.length * plan.heads * plan.head_dim * plan.layers
    forward = 2 * weights + attention
    backward = (4 if work.method == "full" else 2) * weights + 2 * attention
    again = forward if work.recompute == "full" else 0
    return tokens * (forward + backward + again)


def _layouts(plan: TensorPlan, family: Family, work: Workload, world: int, global_batch: int) -> Iterator[Layout]:
    for tensor in divisors(world):
        for pipeline in divisors(world // tensor):
            for sharding in divisors(world // (tensor * pipeline)):
                for stage in (1, 2, 3) if sharding > 1 else (0,):
                    for sequence in (False, True) if tensor > 1 else (False,):
                        request = LayoutRequest(
                            world_size=world, tensor=tensor, pipeline=pipeline, sharding=sharding, stage=stage,
                            sequence_parallel=sequence, global_batch=global_batch, max_length=work.length,
                            amp_master_grad=work.gradient_bytes > work.weight_bytes,
                        )  # fmt: skip
                        request = replace(request, accumulation=accumulation_for(request))
                        if next(find_layout_problems(request, plan, family), None) is None:
                            yield layout_of(request, plan)
