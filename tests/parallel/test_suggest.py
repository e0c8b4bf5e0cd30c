"""Suggested layouts fit, work, and come in the order of their computed time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paddlesft.models.families import family_named
from paddlesft.parallel.estimate import estimate_memory, worst_card
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.suggest import Machine, cost_of, operations, simplest, suggest_layouts
from paddlesft.parallel.workload import Workload

FAMILY = family_named("llama")
PLAN = FAMILY.plan({})  # LLaMA 7B
WORK = Workload(length=4096, weight_bytes=2, gradient_bytes=4, state_bytes=12, activation_bytes=2,
                flash_attention=True, divided_logits=True)  # fmt: skip


@pytest.mark.parametrize("world", [8, 16])
def test_suggestions_fit_keep_world_and_batch_and_are_sorted(world: int) -> None:
    found = suggest_layouts(PLAN, FAMILY, WORK, world, 64, Machine())
    assert found
    for one in found:
        assert (one.layout.world_size, one.layout.global_batch) == (world, 64)
        assert one.memory == worst_card(estimate_memory(one.layout, PLAN, one.work))
        assert one.memory.total <= Machine().memory
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)


def test_what_does_not_fit_is_not_suggested() -> None:
    assert suggest_layouts(PLAN, FAMILY, WORK, 1, 64, Machine()) == []
    assert suggest_layouts(PLAN, FAMILY, WORK, 1, 64, Machine(memory=200e9))


def test_slow_links_between_nodes_keep_tensor_parallelism_inside_one() -> None:
    found = suggest_layouts(PLAN, FAMILY, WORK, 16, 64, Machine(memory=30e9, between=1e9))
    assert found[0].layout.tensor <= 8
    assert all(len({rank // 8 for rank in group}) == 1 for group in found[0].layout.groups("tensor"))


def test_the_simplest_is_nearly_as_quick_and_has_no_more_parts() -> None:
    found = suggest_layouts(PLAN, FAMILY, WORK, 64, 128, Machine())
    chosen = simplest(found)
    assert chosen.seconds <= 1.05 * found[0].seconds
    assert simplest(found, slack=0) == found[0]

    def parts(layout: Layout) -> int:
        return (layout.tensor > 1) + (layout.pipeline > 1) + layout.sequence_parallel

    assert parts(chosen.layout) == min(parts(one.layout) for one in found if one.seconds <= 1.05 * found[0].seconds)


def test_the_time_of_a_step_by_hand() -> None:
    machine = Machine(cards_per_node=2, arithmetic=1e12, inside=10e9, between=1e9)
    layout = Layout(data=2, pipeline=2, accumulation=4, layers=32, heads=32, kv_heads=32, vocab=32000)
    one = cost_of(layout, PLAN, WORK, machine)
    assert one.arithmetic_seconds == operations(PLAN, WORK, 8) / (4 * 1e12)
    assert one.idle_seconds == one.arithmetic_seconds / 4  # (p - 1) / m
    data, pipeline = one.traffic  # ranks 0, 1 of a node are a pipeline; its copy is on the other node
    assert one.sending_seconds == pytest.approx(data.bytes / 1e9 + pipeline.bytes / 10e9)
    assert one.seconds == one.arithmetic_seconds + one.idle_seconds + one.sending_seconds


def test_operations_are_six_for_each_weight_and_token_and_attention() -> None:
    weights = PLAN.parameters - PLAN.table.size - 4096  # the embedding is looked up; norms behind the layers aside
    attention = 2 * 4096 * 4096 * 32
    tokens = 2 * 4096
    assert operations(PLAN, WORK, 2) == tokens * (6 * weights + 3 * attention)
    assert operations(PLAN, replace(WORK, recompute="full"), 2) == tokens * (8 * weights + 4 * attention)
    assert operations(PLAN, replace(WORK, method="lora"), 2) == tokens * (4 * weights + 3 * attention)
