"""The layouts that would work, nearest to what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import log2

from paddlesft.models.family import Family
from paddlesft.models.tensor_plans import TensorPlan
from paddlesft.parallel.layout_rules import LayoutRequest, accumulation_for, divisors, find_layout_problems


def nearest_layouts(
    request: LayoutRequest, plan: TensorPlan, family: Family, most: int = 3
) -> list[tuple[LayoutRequest, list[str]]]:
    """Return requests for the same world size without problems, nearest first.

    Near is: few keys changed; then little changed, in factors of two; then the tensor degree kept before the pipeline's
    and that before sharding's.

    Args:
        request: what was asked for.
        plan: of the model's weights.
        family: its row.
        most: how many at most.

    Returns:
        Each request with its changes in words, as ``tensor_parallel_degree 3 -> 2``; empty when no change of degrees
        helps.
    """
    working = (one for one in _candidates(request) if next(find_layout_problems(one, plan, family), None) is None)
    return [(one, changes(request, one)) for one in sorted(working, key=lambda one: _distance(request, one))[:most]]


def changes(asked: LayoutRequest, other: LayoutRequest) -> list[str]:
    """Return the keys that differ, as ``key old -> new``."""
    named = [
        ("tensor_parallel_degree", asked.tensor, other.tensor),
        ("pipeline_parallel_degree", asked.pipeline, other.pipeline),
        ("virtual_pp_degree", asked.virtual, other.virtual),
        (
            "sharding",
            f"stage{asked.stage}" if asked.stage else "none",
            f"stage{other.stage}" if other.stage else "none",
        ),
        ("sequence_parallel", str(asked.sequence_parallel).lower(), str(other.sequence_parallel).lower()),
        ("gradient_accumulation_steps", asked.accumulation, other.accumulation),
    ]
    if asked.sharding is not None:
        named.insert(3, ("sharding_parallel_degree", asked.sharding, other.sharding_degree))
    elif other.sharding_degree > 1 and other.data_degree > 1:
        named.insert(3, ("sharding_parallel_degree", "unset", other.sharding_degree))
    return [f"{key} {old} -> {new}" for key, old, new in named if old != new]


def _candidates(request: LayoutRequest) -> Iterator[LayoutRequest]:
    world = request.world_size
    for tensor in divisors(world):
        for pipeline in divisors(world // tensor):
            for sharding in divisors(world // (tensor * pipeline)):
                stages = {request.stage, 1, 2} - {0} if sharding > 1 else {0}
                for stage in stages:
                    for virtual in {request.virtual, 1} if pipeline > 1 else {1}:
                        for sequence in {request.sequence_parallel, False} if tensor > 1 else {False}:
                            one = replace(
                                request, tensor=tensor, pipeline=pipeline, sharding=sharding, stage=stage,
                                virtual=virtual, sequence_parallel=sequence,
                            )  # fmt: skip
                            if one.global_batch is not None:
                                one = replace(one, accumulation=accumulation_for(one))
                            yield one
                            if virtual > 1 and one.accumulation < 2 * pipeline and one.global_batch is None:
                                yield replace(one, accumulation=2 * pipeline)


def _distance(asked: LayoutRequest, other: LayoutRequest) -> tuple[float, ...]:
    wanted_sharding = asked.sharding if asked.sharding is not None else other.sharding_degree
    steps = [
        abs(log2(a / b))
        for a, b in (
            (asked.tensor, other.tensor),
            (asked.pipeline, other.pipeline),
            (wanted_sharding, other.sharding_degree),
            (asked.virtual, other.virtual),
            (asked.accumulation, other.accumulation if asked.global_batch is None else asked.accumulation),
        )
    ]
    # sharding that was asked for without a degree takes all that is left over: what stays data parallel is a change
    steps.append(log2(other.data_degree) if asked.sharding is None and asked.stage and other.sharding_degree > 1 else 0)
    switched = [asked.stage != other.stage, asked.sequence_parallel != other.sequence_parallel]
    changed = sum(step > 0 for step in steps) + sum(switched)
    return (changed, sum(steps) + abs(asked.stage - other.stage), *steps)
