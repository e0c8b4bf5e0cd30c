"""Bytes that a card sends, against the papers and against sums made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paddlesft.models.families import family_named
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.traffic import (
    all_reduce,
    crosses_nodes,
    data_bytes,
    estimate_traffic,
    one_way,
    pipeline_bytes,
    sharding_bytes,
    tensor_bytes,
)
from paddlesft.parallel.workload import Workload

HALF = Workload(weight_bytes=2, gradient_bytes=2, state_bytes=12, activation_bytes=2, length=16)
LLAMA = family_named("llama").plan(
    {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10}
)
BLOOM = family_named("bloom").plan({"hidden_size": 8, "n_layer": 4, "n_head": 2, "vocab_size": 10})
TOKENS = 16 * 8 * 2  # bytes of a micro-batch's hidden states


def test_rings() -> None:
    assert all_reduce(100, 4) == 150
    assert one_way(100, 4) == 75


def test_data_parallelism_sends_every_gradient_almost_twice() -> None:
    assert data_bytes(Layout(data=4, layers=4), LLAMA, HALF, 0) == 1.5 * 2 * LLAMA.parameters


@pytest.mark.parametrize(
    ("stage", "micro_batches", "volumes"),
    [
        (1, 1, 2),  # ZeRO, section 7.2.1: as data parallelism
        (1, 4, 2),
        (2, 1, 2),
        (2, 4, 4 + 1),  # a stage-2 rank keeps no gradient that is not its own, so each micro-batch is reduced
        (3, 1, 4),  # the paper has 3; Paddle all-reduces where a reduce-scatter would do
        (3, 4, 16),
    ],
)
def test_sharding_sends_multiples_of_the_model(stage: int, micro_batches: int, volumes: int) -> None:
    layout = Layout(sharding=8, stage=stage, accumulation=micro_batches, layers=4)
    assert sharding_bytes(layout, LLAMA, HALF, 0) == pytest.approx(volumes * 7 / 8 * 2 * LLAMA.parameters)


def test_paddle_reduces_gradients_as_it_is_counted() -> None:
    import inspect

    from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_stage2, group_sharded_stage3

    assert "dist.all_reduce(tensor=full_grad" in inspect.getsource(group_sharded_stage3)
    stage2 = inspect.getsource(group_sharded_stage2)
    assert "dist.reduce(" in stage2
    assert "def no_sync" not in stage2  # so every micro-batch is reduced


def test_tensor_parallelism_with_fused_matrices_sums_four_times_a_layer() -> None:
    # Megatron-LM, figure 4: two all-reduces in the forward pass, two in the backward pass
    layout = Layout(tensor=2, accumulation=3, layers=4)
    outer = 2 * all_reduce(TOKENS, 2) + one_way(16 * 10 * 2, 2)
    assert tensor_bytes(layout, BLOOM, HALF, 0) == 3 * (4 * 4 * all_reduce(TOKENS, 2) + outer)


def test_matrices_that_are_not_fused_each_sum_their_gradient() -> None:
    layout = Layout(tensor=2, layers=4)
    work = replace(HALF, divided_logits=True)
    outer = 2 * all_reduce(TOKENS, 2)
    assert tensor_bytes(layout, LLAMA, work, 0) == 4 * 7 * all_reduce(TOKENS, 2) + outer
    assert tensor_bytes(layout, LLAMA, replace(work, recompute="full"), 0) == 4 * 9 * all_reduce(TOKENS, 2) + outer
    assert tensor_bytes(layout, LLAMA, replace(work, recompute="full_attn"), 0) == 4 * 8 * all_reduce(TOKENS, 2) + outer
    assert tensor_bytes(replace(layout, whole_vocabulary=True), LLAMA, work, 0) == 4 * 7 * all_reduce(TOKENS, 2)


def test_sequence_parallelism_sends_as_much_as_sums_of_fused_matrices_do() -> None:
    # arXiv:2205.05198, section 4.2.2: an all-gather and a reduce-scatter send what an all-reduce sends
    work = replace(HALF, divided_logits=True)
    alone = tensor_bytes(Layout(tensor=2, layers=4), BLOOM, work, 0)
    divided = Layout(tensor=2, layers=4, sequence_parallel=True)
    assert tensor_bytes(divided, BLOOM, work, 0) == alone
    again = tensor_bytes(divided, BLOOM, replace(work, regather=True), 0)
    assert again - alone == 4 * 2 * one_way(TOKENS, 2)


def test_lora_sums_its_narrow_activations_too() -> None:
    layout = Layout(tensor=2, layers=4)
    lora = replace(HALF, method="lora", lora_rank=4)
    extra = tensor_bytes(layout, LLAMA, lora, 0) - tensor_bytes(layout, LLAMA, HALF, 0)
    assert extra == 4 * 7 * all_reduce(16 * 4 * 2, 2)


def test_pipelines_send_hidden_states_masks_and_gradients() -> None:
    layout = Layout(pipeline=4, accumulation=3, layers=4)
    mask = 16 * 16 * 2
    assert pipeline_bytes(layout, LLAMA, HALF, 0) == 3 * (TOKENS + mask)
    assert pipeline_bytes(layout, LLAMA, HALF, 1) == 3 * (2 * TOKENS + mask)
    assert pipeline_bytes(layout, LLAMA, HALF, 3) == 3 * TOKENS
    flash = replace(HALF, flash_attention=True)
    assert pipeline_bytes(layout, LLAMA, flash, 1) == 3 * 2 * TOKENS
    interleaved = replace(layout, virtual=2, layers=8)
    assert pipeline_bytes(interleaved, LLAMA, flash, 0) == 3 * (2 + 1) * TOKENS
    divided = replace(layout, tensor=2, sequence_parallel=True)
    assert pipeline_bytes(divided, LLAMA, flash, 1) == 3 * TOKENS


def test_a_tied_embedding_is_summed_between_first_and_last_stage() -> None:
    layout = Layout(pipeline=2, layers=4)
    flash = replace(HALF, flash_attention=True)
    assert pipeline_bytes(layout, BLOOM, flash, 0) == TOKENS + all_reduce(2 * 80, 2)
    assert pipeline_bytes(layout, BLOOM, replace(flash, method="lora"), 0) == TOKENS


def test_only_axes_longer_than_one_are_listed_with_their_busiest_card() -> None:
    layout = Layout(data=2, pipeline=2, sharding=2, tensor=2, stage=1, layers=4)
    found = {row.axis: row for row in estimate_traffic(layout, LLAMA, HALF)}
    assert list(found) == ["data", "sharding", "tensor", "pipeline"]
    assert found["data"].bytes == round(max(data_bytes(layout, LLAMA, HALF, stage) for stage in range(2)))
    assert found["sharding"].what == "gradients and new weights, once a step"
    assert estimate_traffic(Layout(layers=4), LLAMA, HALF) == []


def test_axes_that_leave_a_node_are_known() -> None:
    layout = Layout(data=2, pipeline=2, tensor=4)
    assert not crosses_nodes(layout, "tensor", 8)
    assert not crosses_nodes(layout, "pipeline", 8)
    assert crosses_nodes(layout, "data", 8)
    assert crosses_nodes(layout, "tensor", 2)
