"""Memory against figures of the papers and against sums made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlesft.models.families import FAMILIES, family_named
from paddlesft.models.paddle_config import read_paddle_config
from paddlesft.models.tensor_plans import PlannedTensor, TensorPlan
from paddlesft.parallel.estimate import (
    estimate_memory,
    layer_activations,
    layers_in_flight,
    logit_bytes,
    mask_bytes,
    recomputed_input,
    stage_numbers,
    worst_card,
)
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.workload import Workload, workload_of
from tests.models.test_tensor_plans import tiny_config
from tests.parallel.layout_requests import run_with

HALF = Workload(weight_bytes=2, gradient_bytes=2, state_bytes=12, activation_bytes=2, score_bytes=2)


def plan_of(numbers: int) -> TensorPlan:
    """A model of one matrix."""
    return TensorPlan(
        hidden=1, heads=1, kv_heads=1, head_dim=1, ffn=1, vocab=1, layers=1, gated=False, dropout=False,
        embedding=(PlannedTensor("all", (numbers,)),), layer=(), norm=(),
    )  # fmt: skip


def megatron(h: int, a: int) -> TensorPlan:
    """The transformer of the papers: as many key/value heads as heads, 4 h wide, with dropout."""
    return TensorPlan(
        hidden=h, heads=a, kv_heads=a, head_dim=h // a, ffn=4 * h, vocab=1, layers=1, gated=False, dropout=True,
        embedding=(PlannedTensor("table", (1, h)),),
        layer=(PlannedTensor("qkv", (h, 3 * h), 1), PlannedTensor("up", (h, 4 * h), 1)), norm=(),
    )  # fmt: skip


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_state_of_7_5_billion_numbers_on_64_cards_is_that_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    # arXiv:1910.02054, figure 1: 7.5 billion parameters, 64 cards, Adam in mixed precision
    layout = Layout(sharding=64, stage=stage) if stage else Layout(data=64)
    (memory,) = estimate_memory(layout, plan_of(7_500_000_000), HALF)
    assert (memory.weights + memory.gradients + memory.optimizer) / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize("t", [1, 2, 8])
def test_activations_of_a_layer_are_those_of_the_sequence_parallel_paper(t: int) -> None:
    # arXiv:2205.05198, table 2, for s, b, h, a of its 22B model
    s, b, h, a = 2048, 4, 6144, 64
    plan, work = megatron(h, a), replace(HALF, length=s, regather=True)
    alone = Layout(tensor=t, micro_batch=b, heads=a, kv_heads=a)
    sbh = s * b * h
    assert layer_activations(alone, plan, work) == pytest.approx(sbh * (10 + 24 / t + 5 * a * s / (h * t)))
    if t > 1:
        divided = replace(alone, sequence_parallel=True)
        assert layer_activations(divided, plan, work) == pytest.approx(sbh / t * (34 + 5 * a * s / h))
        selective = replace(work, recompute="core_attn")
        assert layer_activations(divided, plan, selective) == pytest.approx(sbh / t * 34)
        assert recomputed_input(divided, plan, work) == 2 * sbh / t
    assert recomputed_input(alone, plan, work) == 2 * sbh


def test_inputs_that_paddle_gathers_for_each_matrix_are_counted() -> None:
    plan, work = megatron(64, 4), replace(HALF, length=8)
    layout = Layout(tensor=2, sequence_parallel=True)
    kept = layer_activations(layout, plan, work)
    again = layer_activations(layout, plan, replace(work, regather=True))
    assert kept - again == 2 * 8 * 64 * 2  # two column matrices, 8 tokens, 64 numbers, 2 bytes


def test_activations_of_a_gated_layer_with_few_key_value_heads_by_hand() -> None:
    plan = family_named("llama").plan(
        {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 20}
    )
    work = Workload(length=3)
    # a token: norms 4 x 8; q 8, k and v 2 x 4, input of o 8; gate, up, product 3 x 20; scores 4 heads x 3
    numbers = 32 + 24 + 60 + 12
    assert layer_activations(Layout(micro_batch=2), plan, work) == 2 * 3 * numbers * 4
    assert layer_activations(Layout(), plan, replace(work, flash_attention=True)) == 3 * (numbers - 12) * 4
    assert layer_activations(Layout(tensor=2), plan, work) == 3 * (32 + 12 + 30 + 6) * 4
    assert layer_activations(Layout(), plan, replace(work, recompute="full_attn")) == 3 * (32 + 60) * 4


def test_stages_keep_as_many_micro_batches_as_1f1b_lets_fly() -> None:
    layout = Layout(pipeline=4, accumulation=8, layers=8)
    assert [layers_in_flight(layout, stage) for stage in range(4)] == [8, 6, 4, 2]
    assert [layers_in_flight(replace(layout, accumulation=2), stage) for stage in range(4)] == [4, 4, 4, 2]
    assert layers_in_flight(Layout(layers=8, accumulation=8), 0) == 8


def test_interleaved_stages_keep_what_the_paper_says() -> None:
    # arXiv:2205.05198, section 4.2.3: the first stage keeps L (1 + (p - 1) / (p v)) layers
    p, v, layers = 4, 3, 24
    layout = Layout(pipeline=p, virtual=v, accumulation=64, layers=layers)
    assert layers_in_flight(layout, 0) == layers * (1 + (p - 1) / (p * v))


def test_memory_of_a_small_model_by_hand() -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
              "vocab_size": 10}  # fmt: skip
    plan = family_named("llama").plan(config)
    layer = 4 * 64 + 3 * 128 + 2 * 8
    assert plan.parameters == 2 * 80 + 2 * layer + 8
    layout = Layout(pipeline=2, accumulation=4, layers=2, heads=2, kv_heads=2, vocab=10)
    work = Workload(length=4, recompute="full")
    first, last = estimate_memory(layout, plan, work)
    assert stage_numbers(layout, plan, work, 0) == (80 + layer, 80 + layer)
    assert stage_numbers(layout, plan, work, 1) == (80 + 8 + layer, 80 + 8 + layer)
    assert (first.weights, first.gradients, first.optimizer) == tuple((80 + layer) * n for n in (4, 4, 8))
    per_layer = layer_activations(layout, plan, work)
    assert first.activations == 2 * 4 * 8 * 4 + per_layer + 2 * mask_bytes(layout, work)
    assert last.activations == 4 * 8 * 4 + per_layer + mask_bytes(layout, work)
    assert (first.logits, last.logits) == (0, 2 * 4 * 4 * 10)
    assert mask_bytes(layout, work) == 4 * 4 * 4
    assert last.total == last.weights + last.gradients + last.optimizer + last.activations + last.logits
    assert worst_card([first, last]) == last


def test_logits_are_divided_when_they_are_left_divided() -> None:
    plan, layout = family_named("llama").plan({"vocab_size": 10}), Layout(tensor=2, vocab=10)
    work = Workload(length=3, divided_logits=True)
    assert logit_bytes(layout, plan, work) == 2 * 4 * 3 * 5
    assert logit_bytes(layout, plan, replace(work, divided_logits=False)) == 2 * 4 * 3 * 10
    assert logit_bytes(layout, plan, replace(work, activation_bytes=2)) == (2 + 2 * 4) * 3 * 5
    assert logit_bytes(replace(layout, whole_vocabulary=True), plan, work) == 2 * 4 * 3 * 10


def test_lora_trains_little_and_holds_all() -> None:
    plan = family_named("llama").plan({})
    work = replace(HALF, method="lora", lora_rank=8, lora_targets=family_named("llama").lora_target_modules)
    (memory,) = estimate_memory(Layout(layers=plan.layers), plan, work)
    trained = 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert memory.weights == 2 * (plan.parameters + trained)
    assert (memory.gradients, memory.optimizer) == (2 * trained, 12 * trained)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(FAMILIES), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
def test_ranks_hold_every_number_of_a_model_together(family: object, t: int, p: int) -> None:
    plan = family.plan(tiny_config(family))
    layout = Layout(tensor=t, pipeline=p, layers=plan.layers)
    held = [stage_numbers(layout, plan, Workload(), stage)[0] for stage in range(p)]
    whole = sum(tensor.size * (t if tensor.split is None else 1) for tensor in plan.tensors())
    copies = plan.table.size if p > 1 and not plan.head else 0
    assert sum(held) * t == whole + copies


@pytest.mark.parametrize("keys", [{}, {"weight_double_quant": True}, {"weight_blocksize": 32}])
def test_codes_and_scales_of_a_quantized_base_are_counted(tiny_llama: Path, keys: dict[str, object]) -> None:
    """Against the tensors of the loaded model."""
    from paddlesft.models.load import load_model
    from paddlesft.tuning.prepare import base_format, prepare_for_tuning

    run = run_with(lora=True, weight_quantize_algo="nf4", **keys)
    config, family = read_paddle_config(tiny_llama)
    plan = family.plan(config)
    (memory,) = estimate_memory(Layout(layers=plan.layers), plan, workload_of(run, family, plan))
    model = prepare_for_tuning(load_model(tiny_llama, quantize=base_format(run)), run)
    tensors = {id(tensor): tensor for tensor in model.model.state_dict().values()}.values()
    held = sum(tensor.numel().item() * tensor.element_size() for tensor in tensors)
    assert memory.weights == pytest.approx(held, rel=1e-3)
