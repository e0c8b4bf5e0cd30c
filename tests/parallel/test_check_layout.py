"""Every problem of a layout is named with its key, what was found and what is allowed; all of them at once."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlesft.errors import ConfigError
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.models.tensor_plans import TensorPlan
from paddlesft.parallel.check_layout import check_layout, derive_layout, layout_of
from paddlesft.parallel.layout_rules import LayoutRequest, find_layout_problems
from paddlesft.parallel.nearest import nearest_layouts
from tests.parallel.layout_requests import run_with

LLAMA = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 4,
         "intermediate_size": 4096, "vocab_size": 32000}  # fmt: skip
GPT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50257}


def problems(world: int, family: str = "llama", model: dict[str, Any] | None = None, batch: int | None = None,
             **keys: Any) -> str:  # fmt: skip
    config = model if model is not None else LLAMA if family == "llama" else {}
    with pytest.raises(ConfigError) as caught:
        check_layout(run_with(**keys), world, config, family_named(family), batch)
    return str(caught.value)


# ---- one message after the other ----

MESSAGES = [
    (
        dict(world=8, tensor_parallel_degree=16),
        "sft.json:4: found tensor_parallel_degree 16, which does not divide the 8 processes of this run; allowed: "
        "products that divide 8 (1, 2, 4, 8), or 16 processes or a multiple. What is left over is data parallel.",
    ),
    (
        dict(world=8, tensor_parallel_degree=2, pipeline_parallel_degree=2, sharding="stage1",
             sharding_parallel_degree=4),
        "found tensor_parallel_degree 2 x pipeline_parallel_degree 2 x sharding_parallel_degree 4 = 16, which does not "
        "divide the 8 processes",
    ),
    (
        dict(world=1, tensor_parallel_degree=2),
        "sft.json:4: found tensor_parallel_degree 2, but this run is one process; allowed: degrees of 1, or 2 "
        "processes or a multiple: paddlesft train --nproc 2 CONFIG, or python -m paddle.distributed.launch "
        "--nproc_per_node 2 llm/finetune.py CONFIG. paddlesft layout shows such a run without starting it, paddlesft "
        "rehearse tries it small on the CPU.",
    ),
    (
        dict(world=6, tensor_parallel_degree=3),
        "tensor_parallel_degree: found 3, which does not divide the model's 16 attention heads; allowed for this model "
        "on 6 processes: 1, 2.",
    ),
    (
        dict(world=8, tensor_parallel_degree=8),
        "tensor_parallel_degree: found 8, which does not divide the model's 4 key/value heads; allowed for this model "
        "on 8 processes: 1, 2, 4.",
    ),
    (
        dict(world=4, tensor_parallel_degree=4, model={**LLAMA, "intermediate_size": 4098}),
        "tensor_parallel_degree: found 4, which does not divide the model's 4098 feed-forward columns; allowed for "
        "this model on 4 processes: 1, 2.",
    ),
    (
        dict(world=2, family="gpt", model=GPT, tensor_parallel_degree=2),
        "tensor_parallel_degree: found 2, which does not divide the model's 50257 rows of the vocabulary; allowed for "
        "this model on 2 processes: 1.",
    ),
    (
        dict(world=2, tensor_parallel_degree=2, optim="adamw_mini"),
        "optim: found adamw_mini with tensor_parallel_degree 2; PaddleNLP's AdamW Mini does not know divided weights; "
        "allowed: adamw, or a degree of 1.",
    ),
    (
        dict(world=4, tensor_parallel_degree=2, lora=True, weight_quantize_algo="nf4"),
        "tensor_parallel_degree: found 2; the base is quantized (weight_quantize_algo nf4), and its codes and scales "
        "are not divided among processes; allowed: data parallel, and sharding: stage1 or stage2, with "
        "tensor_parallel_degree 1.",
    ),
    (
        dict(world=2, pipeline_parallel_degree=2, lora=True,
             model={**LLAMA, "quantization_config": {"quant_method": "paddlesft", "kinds": [{"format": "nf4"}]}}),
        "pipeline_parallel_degree: found 2; the base is quantized (by paddlesft quantize), and its codes and scales "
        "are not divided among processes; allowed: data parallel, and sharding: stage1 or stage2, with "
        "pipeline_parallel_degree 1.",
    ),
    (
        dict(world=2, sharding="stage3", lora=True, weight_quantize_algo="weight_only_int8"),
        "sharding: found stage3; the base is quantized (weight_quantize_algo weight_only_int8), and its codes and "
        "scales are not divided among processes; allowed: data parallel, and sharding: stage1 or stage2.",
    ),
    (
        dict(world=2, sequence_parallel=True),
        "sequence_parallel: found true with tensor_parallel_degree 1; it divides activations among the tensor-parallel "
        "processes; allowed: tensor_parallel_degree of 2 or more, or sequence_parallel: false.",
    ),
    (
        dict(world=2, family="mistral", tensor_parallel_degree=2, sequence_parallel=True),
        "sequence_parallel: found true; PaddleNLP's model of family mistral does not divide sequences; allowed: false, "
        "or a family of llama, qwen2, gemma, gpt, qwen, chatglm_v2.",
    ),
    (
        dict(world=2, tensor_parallel_degree=2, sequence_parallel=True, max_length=1023),
        "max_length: found 1023, which tensor_parallel_degree 2 does not divide; sequence_parallel cuts every row into "
        "2 equal parts; allowed: a multiple of 2, for example 1022.",
    ),
    (
        dict(world=2, tensor_parallel_degree=2, sequence_parallel=True, do_predict=True),
        "do_predict: found true with sequence_parallel; replies are generated with a cache, which divided sequences do "
        "not have; allowed: false, or sequence_parallel: false.",
    ),
    (
        dict(world=2, family="bloom", pipeline_parallel_degree=2),
        "pipeline_parallel_degree: found 2; PaddleNLP has no pipeline of family bloom (it has llama, qwen2, gemma, "
        "gpt, qwen, chatglm_v2); allowed: 1.",
    ),
    (
        dict(world=8, pipeline_parallel_degree=8, model={**LLAMA, "num_hidden_layers": 6}),
        "pipeline_parallel_degree: found 8; the model has 6 layers, fewer than stages; allowed for 8 processes: 1, 2.",
    ),
    (
        dict(world=4, pipeline_parallel_degree=4, virtual_pp_degree=8, gradient_accumulation_steps=8),
        "pipeline_parallel_degree: found 4 x virtual_pp_degree 8; the model has 24 layers, fewer than stages; allowed "
        "for 4 processes: 1, 2, 4.",
    ),
    (
        dict(world=4, pipeline_parallel_degree=4, model={**LLAMA, "num_hidden_layers": 5}),
        "pipeline_parallel_degree: found 4; 5 layers do not divide evenly, and Paddle would leave a stage without any; "
        "allowed for 4 processes: 1.",
    ),
    (
        dict(world=4, pipeline_parallel_degree=4, virtual_pp_degree=5, gradient_accumulation_steps=8),
        "virtual_pp_degree: found 5 with pipeline_parallel_degree 4; the interleaved schedule needs equal chunks, and "
        "4 x 5 does not divide 24 layers; allowed with pipeline_parallel_degree 4: 1, 2, 3, 6.",
    ),
    (
        dict(world=2, pipeline_parallel_degree=2, virtual_pp_degree=2, gradient_accumulation_steps=8),
        "virtual_pp_degree: found 2 with pipeline_parallel_degree 2; Paddle's interleaved schedule needs 3 or more "
        "stages; allowed: virtual_pp_degree 1.",
    ),
    (
        dict(world=4, pipeline_parallel_degree=4, virtual_pp_degree=2, gradient_accumulation_steps=6),
        "gradient_accumulation_steps: found 6 with virtual_pp_degree 2; the interleaved schedule needs two "
        "micro-batches for each of the 4 stages; allowed: 8 or more.",
    ),
    (
        dict(world=2, pipeline_parallel_degree=2, eval_with_do_generation=True, do_predict=True),
        "sft.json:5, 9: eval_with_do_generation and do_predict: found true with pipeline_parallel_degree "
        "2; a pipeline does not generate; allowed: false, or pipeline_parallel_degree 1.",
    ),
    (
        dict(world=4, sharding_parallel_degree=2),
        "sft.json:7: sharding_parallel_degree: found 2, but sharding names no stage, so that nobody would add up the "
        "gradients of these 2; allowed: sharding: stage1, stage2 or stage3, or sharding_parallel_degree 1 (data "
        "parallel).",
    ),
    (
        dict(world=4, pipeline_parallel_degree=2, sharding="stage2"),
        "sft.json:6, 5: sharding: found stage2 with pipeline_parallel_degree 2; PaddleNLP combines "
        "pipelines with stage1 only; allowed: stage1, or pipeline_parallel_degree 1.",
    ),
    (
        dict(world=4, tensor_parallel_degree=2, sharding="stage3 offload"),
        "sharding: found stage3 with tensor_parallel_degree 2; PaddleNLP combines tensor parallelism with stage1 and "
        "stage2 only; allowed: stage1 or stage2, or tensor_parallel_degree 1.",
    ),
    (
        dict(
            world=4, sharding="stage2 offload", sharding_parallel_degree=2, fp16=True, bf16=False, fp16_opt_level="O2"
        ),
        "sharding: found stage2 offload with 2 data-parallel copies; Paddle moves state to the host in stage2 only "
        "without data parallelism; allowed: stage2, stage3 offload, or sharding_parallel_degree 4.",
    ),
    (
        dict(world=4, sharding="stage2", sharding_parallel_degree=2, amp_master_grad=True, bf16=True),
        "amp_master_grad: found true with stage2 and 2 data-parallel copies; Paddle keeps master gradients in stage2 "
        "and stage3 only without data parallelism; allowed: false, or sharding_parallel_degree 4.",
    ),
    (
        dict(world=4, batch=30, per_device_train_batch_size=2),
        "sft.json:9: global batch: found 30 rows, which 4 data ranks with per_device_train_batch_size 2 cannot share "
        "equally; allowed: multiples of 8, for example 24 or 32.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "message"), MESSAGES, ids=[m[1][:60] for m in MESSAGES])
def test_each_problem_says_key_found_and_allowed(asked: dict[str, Any], message: str) -> None:
    assert message in problems(**asked)


def test_a_family_whose_weights_paddlenlp_cannot_split_is_refused() -> None:
    family = replace(family_named("llama"), tensor_parallel=False)
    with pytest.raises(ConfigError, match=re.escape(
        "tensor_parallel_degree: found 2; PaddleNLP cannot split the weights of family llama; allowed: 1."
    )):  # fmt: skip
        check_layout(run_with(tensor_parallel_degree=2), 2, LLAMA, family)


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    text = problems(
        8, tensor_parallel_degree=3, pipeline_parallel_degree=2, sharding="stage3", eval_with_do_generation=True
    )
    head, *lines = text.splitlines()
    assert head == "7 problems in the parallel layout for 8 processes:"
    assert [re.match(r"  sft\.json:(\d)", line)[1] for line in lines[:7]] == ["4", "4", "4", "4", "5", "6", "6"]
    for part in ("3 x pipeline_parallel_degree 2 = 6", "16 attention heads", "4 key/value heads", "4096 feed-forward",
                 "stage3 with pipeline_parallel_degree", "stage3 with tensor_parallel_degree",
                 "does not generate"):  # fmt: skip
        assert part in text
    assert "Nearest layouts of 8 processes that would work:" in text


def test_the_nearest_layouts_are_named_with_what_changes() -> None:
    text = problems(8, tensor_parallel_degree=8)
    assert text.splitlines()[-4:] == [
        "Nearest layouts of 8 processes that would work:",
        "  1. tensor_parallel_degree 4, data parallel 2  (change tensor_parallel_degree 8 -> 4)",
        "  2. tensor_parallel_degree 2, data parallel 4  (change tensor_parallel_degree 8 -> 2)",
        "  3. data parallel 8  (change tensor_parallel_degree 8 -> 1)",
    ]


def test_sharding_whose_degree_is_left_open_takes_what_is_over_in_the_nearest_layouts_too() -> None:
    text = problems(8, tensor_parallel_degree=2, sharding="stage3")
    assert (
        "  1. tensor_parallel_degree 2, sharding stage2, sharding_parallel_degree 4  (change sharding stage3 -> stage2)"
        in text
    )
    assert "  2. sharding stage3, sharding_parallel_degree 8  (change tensor_parallel_degree 2 -> 1)" in text


def test_a_global_batch_is_kept_by_the_nearest_layouts() -> None:
    text = problems(8, batch=64, tensor_parallel_degree=8, per_device_train_batch_size=2)
    assert (
        "  1. tensor_parallel_degree 4, data parallel 2  "
        "(change tensor_parallel_degree 8 -> 4, gradient_accumulation_steps 32 -> 16)"
    ) in text


def test_what_no_degree_can_cure_is_said() -> None:
    text = problems(2, batch=3, per_device_train_batch_size=2)
    assert text.endswith("No other degrees for 2 processes would help: change the keys above.")


def test_a_run_needs_a_process() -> None:
    with pytest.raises(ValueError, match="a run has one process or more, not 0"):
        check_layout(run_with(), 0, LLAMA, family_named("llama"))


# ---- what is allowed ----


def test_a_layout_has_the_degrees_of_the_config_and_what_is_left_is_data() -> None:
    layout = check_layout(
        run_with(tensor_parallel_degree=2, pipeline_parallel_degree=2, gradient_accumulation_steps=4,
                 per_device_train_batch_size=2),
        16, LLAMA, family_named("llama"),
    )  # fmt: skip
    assert (layout.data, layout.pipeline, layout.sharding, layout.tensor) == (4, 2, 1, 2)
    assert (layout.global_batch, layout.stage, layout.notices) == (32, 0, ())
    assert (layout.layers, layout.heads, layout.kv_heads, layout.vocab) == (24, 16, 4, 32000)


def test_one_process_is_a_layout_of_every_family() -> None:
    for family in FAMILIES:
        assert check_layout(run_with(), 1, {}, family).world_size == 1


def test_derived_values_are_written_with_their_reasons() -> None:
    run = run_with(tensor_parallel_degree=2, pipeline_parallel_degree=2, sharding="stage1", do_eval=True,
                   gradient_accumulation_steps=8, per_device_train_batch_size=2)  # fmt: skip
    layout = check_layout(run, 8, LLAMA, family_named("llama"))
    rows = derive_layout(run, layout)
    assert run.training.sharding_parallel_degree == 2
    assert str(run.origins["sharding_parallel_degree"]) == "derived: 8 processes / 4 that hold one model"
    assert run.data.pad_to_max_length is True
    assert str(run.origins["pad_to_max_length"]) == "derived: pipeline stages exchange tensors of one shape"
    assert run.training.per_device_eval_batch_size == 16
    assert "a pipeline evaluates in its training shape" in str(run.origins["per_device_eval_batch_size"])
    assert rows == [
        ("data parallel degree", "1", "8 processes / (tensor 2 * pipeline 2 * sharding 2)"),
        ("global batch", "32 rows",
         "per_device_train_batch_size 2 * gradient_accumulation_steps 8 * 2 data ranks"),
    ]  # fmt: skip


def test_a_global_batch_decides_the_accumulation() -> None:
    run = run_with(per_device_train_batch_size=2)
    layout = check_layout(run, 4, LLAMA, family_named("llama"), global_batch=64)
    assert (layout.accumulation, layout.global_batch) == (8, 64)
    derive_layout(run, layout)
    assert run.training.gradient_accumulation_steps == 8
    assert str(run.origins["gradient_accumulation_steps"]) == "derived: the global batch asked for"


def test_sequence_parallelism_pads_rows_to_one_length() -> None:
    run = run_with(tensor_parallel_degree=2, sequence_parallel=True)
    derive_layout(run, check_layout(run, 2, LLAMA, family_named("llama")))
    assert str(run.origins["pad_to_max_length"]) == "derived: sequence parallelism cuts rows of one length"


@pytest.mark.parametrize(
    ("world", "model", "keys", "notice"),
    [
        (2, LLAMA, dict(tensor_parallel_degree=2, sharding="stage1"),
         "sharding stage1 has no effect: no process is left to share with."),
        (2, LLAMA, dict(virtual_pp_degree=2), "virtual_pp_degree 2 has no effect without a pipeline."),
        (2, {**LLAMA, "vocab_size": 32001}, dict(tensor_parallel_degree=2),
         "tensor_parallel_degree 2 does not divide the vocabulary of 32001: each process holds embedding and head "
         "whole (66 million numbers)."),
        (5, LLAMA, dict(pipeline_parallel_degree=5, gradient_accumulation_steps=32),
         "pipeline_parallel_degree 5 does not divide 24 layers: stages have unequal work."),
        (4, LLAMA, dict(pipeline_parallel_degree=4, gradient_accumulation_steps=3),
         "the stages wait for each other 50% of the time with 3 micro-batches; gradient_accumulation_steps 12 or more "
         "makes that 20 % or less."),
    ],
)  # fmt: skip
def test_what_is_allowed_but_worth_knowing_is_a_notice(
    world: int, model: dict[str, Any], keys: dict[str, Any], notice: str
) -> None:
    layout = check_layout(run_with(**keys), world, model, family_named("llama"))
    assert notice in layout.notices
    assert layout.world_size == world


def test_a_layout_is_checked_without_paddle() -> None:
    code = (
        "import sys; from tests.parallel.layout_requests import run_with; "
        "from paddlesft.parallel.check_layout import check_layout; from paddlesft.models.families import family_named;"
        "check_layout(run_with(), 8, {}, family_named('llama')).table();"
        "sys.exit(bool({'paddle', 'paddlenlp', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the nearest layouts ----

requests = st.builds(
    LayoutRequest,
    world_size=st.integers(1, 24), tensor=st.integers(1, 9), pipeline=st.integers(1, 9),
    sharding=st.one_of(st.none(), st.integers(1, 9)), stage=st.integers(0, 3), virtual=st.integers(1, 3),
    sequence_parallel=st.booleans(), micro_batch=st.integers(1, 4), accumulation=st.integers(1, 16),
    global_batch=st.one_of(st.none(), st.integers(1, 64)), max_length=st.integers(2, 4096),
    generates=st.sampled_from([(), ("do_predict",)]),
)  # fmt: skip
plans = {family.name: family.plan({}) for family in FAMILIES}


@settings(deadline=None, max_examples=60)
@given(requests, st.sampled_from(FAMILIES))
def test_nearest_layouts_work_and_keep_the_world(request: LayoutRequest, family: Any) -> None:
    plan: TensorPlan = plans[family.name]
    near = nearest_layouts(request, plan, family)
    for one, changed in near:
        assert not list(find_layout_problems(one, plan, family))
        assert layout_of(one, plan).world_size == request.world_size
        assert one.global_batch == request.global_batch
        if one.global_batch is not None:
            assert layout_of(one, plan).global_batch == one.global_batch
        assert changed or not list(find_layout_problems(request, plan, family))
    assert len({layout_of(one, plan) for one, _ in near}) == len(near)
    if request.global_batch is None:
        assert near  # data parallelism alone is always possible


@settings(deadline=None, max_examples=60)
@given(requests, st.sampled_from(FAMILIES))
def test_a_request_without_problems_is_its_own_nearest_layout(request: LayoutRequest, family: Any) -> None:
    plan: TensorPlan = plans[family.name]
    if list(find_layout_problems(request, plan, family)):
        return
    layout = layout_of(request, plan)
    assert layout.world_size == request.world_size
    assert sorted(rank for group in layout.groups("tensor") for rank in group) == list(range(request.world_size))
    assert sum(len(chunk) for stage in range(layout.pipeline) for chunk in layout.stage_chunks(stage)) == plan.layers
