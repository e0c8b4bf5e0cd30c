"""Rules about quantization: each contradiction has its message, and what does not count in a run is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.config import RunConfig, load_run_config
from paddlesft.config.quantization import weight_format
from paddlesft.errors import ConfigError

PTQ = ["model_name_or_path=m", "output_dir=out", "dataset_name_or_path=data", "do_ptq=true"]
WEIGHTS_ONLY = "weight_only_int8, weight_only_int4, nf4, fp4"


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)


def load(*overrides: str) -> RunConfig:
    return load_run_config(None, [*PTQ, *overrides])


RULES = [
    (
        ["do_gptq=true", "quant_type=WINT4"],
        "do_ptq and do_gptq are both true; one of them rounds the weights. Keep do_gptq for the better 4-bit weights, "
        "do_ptq for a8w8 or for rounding to the nearest.",
    ),
    (
        ["quant_type=A8W8C8"],
        "quant_type: found a8w8c8; a quantized key/value cache is not built yet in this version. Allowed: a8w8, "
        f"llm.int8, {WEIGHTS_ONLY}.",
    ),
    (
        ["quant_type=a8w8_fp8"],
        f"quant_type: found a8w8_fp8; fp8 is not built yet in this version. Allowed: a8w8, llm.int8, {WEIGHTS_ONLY}.",
    ),
    (
        ["do_ptq=false", "do_gptq=true", "quant_type=a8w8"],
        f"quant_type: found a8w8; do_gptq rounds weights only. Allowed with it: {WEIGHTS_ONLY}.",
    ),
    (
        ["do_awq=true", "quant_type=llm.int8"],
        f"quant_type: found llm.int8; do_awq rounds weights only. Allowed with it: {WEIGHTS_ONLY}.",
    ),
    (
        ["weight_quant_method=groupwise", "group_size=0", "quant_type=wint8"],
        "weight_quant_method groupwise contradicts group_size 0: groups have at least one input, and one scale for "
        "each output is group_size 0. Keep one of the two keys.",
    ),
    (
        ["group_size=0", "quant_type=nf4"],
        "group_size: found 0; nf4 has scales for groups of inputs. Allowed: 1 or more; 64 is usual.",
    ),
    (
        ["group_size=64"],
        "group_size: found 64; where inputs are rounded to 8 bits (a8w8), weights have one scale for each output. "
        "Allowed: 0, or a quant_type of weights only.",
    ),
    (
        ["weight_quant_method=groupwise"],
        "group_size: found 128; where inputs are rounded to 8 bits (a8w8), weights have one scale for each output. "
        "Allowed: 0, or a quant_type of weights only.",
    ),
    (["search_alpha_min=0.9"], "search_alpha_min 0.9 is more than search_alpha_max 0.8."),
    (["search_scale_min=8"], "search_scale_min 8 is more than search_scale_max 5."),
    (
        ["skip_list_names=['*down_proj']"],
        "skip_list_names: '*down_proj' is no regular expression (nothing to repeat at position 0). Allowed: "
        "expressions for whole names of layers, such as .*down_proj or .*layers.0.*",
    ),
    (
        ["mixed_precision={.*(down_proj: int8}"],
        "mixed_precision: '.*(down_proj' is no regular expression (missing ), unterminated subpattern at position 2). "
        "Allowed: expressions for whole names of layers, such as .*down_proj or .*layers.0.*",
    ),
    (
        ["mixed_precision={.*down_proj: wint6}"],
        "mixed_precision: found 'wint6' for '.*down_proj'; allowed: int8, int4, nf4, fp4 (skip_list_names leaves "
        "layers as they are). Did you mean 'wint8'?",
    ),
    (
        ["do_train=true", "lora=true"],
        "do_ptq quantizes a whole model, lora trains an adapter beside one: train with do_ptq: false, then: paddlesft "
        "merge-lora --lora_path out --merge_model_path out_merged; then: paddlesft quantize CONFIG lora=false "
        "do_train=false model_name_or_path=out_merged output_dir=out_quantized.",
    ),
    (
        ["prefix_tuning=true"],
        "do_ptq quantizes a whole model, prefix_tuning trains an adapter beside one: a prefix cannot be merged into "
        "the weights; train lora or all weights where the result is to be quantized.",
    ),
    (
        ["tensor_parallel_degree=2", "pipeline_parallel_degree=4"],
        "do_ptq runs in one process on one device; found tensor_parallel_degree 2, pipeline_parallel_degree 4. Set "
        "them to 1: it needs no more than one card.",
    ),
    (
        ["do_train=true", "sharding_parallel_degree=2"],
        "do_ptq runs in one process on one device; found sharding_parallel_degree 2. Train without it, then run "
        "paddlesft quantize on output_dir.",
    ),
    (
        ["dataset_name_or_path=null"],
        "a8w8 looks at rows to calibrate on, and no data is named. Set dataset_name_or_path (a directory with "
        "quant.json or train.json, or a file) or train_dataset_path; weight_only_int8, nf4 and fp4 need no data.",
    ),
    (
        ["dataset_name_or_path=null", "do_ptq=false", "do_gptq=true"],
        "do_gptq looks at rows to calibrate on, and no data is named. Set dataset_name_or_path (a directory with "
        "quant.json or train.json, or a file) or train_dataset_path; weight_only_int8, nf4 and fp4 need no data.",
    ),
    (
        ["dataset_name_or_path=null", "quant_type=wint8", "max_ppl_increase=0.01"],
        "max_ppl_increase needs rows to measure the perplexity on, and no data is named. Set eval_dataset_path or "
        "dataset_name_or_path.",
    ),
    (
        ["do_predict=true"],
        "do_predict answers rows with a model that is trained, do_ptq quantizes one. Set do_predict: false and answer "
        "them with the result: paddlesft predict --model_name_or_path out --data_file FILE.",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), RULES, ids=[" ".join(o) for o, _ in RULES])
def test_contradictions(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert message in [line.partition("command line: ")[2] or line for line in str(caught.value).splitlines()]


def test_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    with pytest.raises(ConfigError, match=r"do_ptq runs in one process on one device; found 2 processes\. Start it"):
        load()


def test_all_problems_come_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "ptq.yaml"
    path.write_text(
        "model_name_or_path: m\noutput_dir: out\ndataset_name_or_path: data\ndo_gptq: true\nquant_type: a8w8\n"
        "skip_list_names: ['(']\nmixed_precision: {x: int3}\ndo_qat: true\nload_quant_model: true\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        load_run_config(path)
    text = str(caught.value)
    for line, start in (
        (4, "quant_type: found a8w8; do_gptq rounds"),
        (6, "skip_list_names: '(' is no regular"),
        (7, "mixed_precision: found 'int3'"),
        (8, "training with simulated quantization (do_ptq and do_gptq quantize a trained model;"),
        (9, "quantizing a quantized model further (predict, chat and QLoRA take"),
    ):
        assert f"{path}:{line}" in text and start in text, (line, text)
    assert text.count("Remove the key or set it to false.") == 2


@pytest.mark.parametrize(
    ("overrides", "notice"),
    [
        (
            ["do_ptq=false", "do_eval=true", "group_size=64"],
            "group_size has no effect while do_ptq, do_gptq and do_awq are off.",
        ),
        (
            ["quant_type=wint8", "shift=true"],
            "shift has no effect with quant_type weight_only_int8: only weights are quantized.",
        ),
        (
            ["quant_type=llm.int8", "ptq_step=16"],
            "ptq_step has no effect with quant_type llm.int8: inputs are rounded as they come.",
        ),
        (["gptq_step=16"], "gptq_step has no effect while do_gptq is off."),
        (["smooth_step=16"], "smooth_step has no effect while smooth is off."),
        (
            ["smooth=true", "smooth_k_piece=4"],
            "smooth_k_piece has no effect while smooth_piecewise_search is off.",
        ),
        (["fp8_type=[e5m2, e5m2]"], "fp8_type has no effect: fp8 is not among the types."),
        (
            ["cachekv_quant_method=abs_max_headwise"],
            "cachekv_quant_method has no effect: the key/value cache is not quantized.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_keys_that_do_not_count_in_this_run_are_said(overrides: list[str], notice: str) -> None:
    assert f"command line: {notice}" in load(*overrides).notices


@pytest.mark.parametrize(
    "overrides",
    [
        ["do_awq=true"],  # PTQ of weights with AWQ's factors
        ["do_awq=true", "do_gptq=true", "do_ptq=false"],
        ["quant_type=nf4", "group_size=32"],
        ["quant_type=wint4", "weight_quant_method=groupwise"],
        ["mixed_precision={.*down_proj: WINT8, .*layers.0.*: nf4}", "skip_list_names=[.*o_proj]"],
        ["dataset_name_or_path=null", "quant_type=weight_only_int8"],  # nothing to look at
        ["do_eval=true", "dataset_name_or_path=rows.jsonl"],
        ["do_train=true"],
    ],
    ids=" ".join,
)
def test_what_fits_together_passes(overrides: list[str]) -> None:
    load(*overrides)


def test_derived_values() -> None:
    run = load("do_ptq=false", "do_gptq=true", "weight_quant_method=groupwise")
    assert (run.quantization.quant_type, run.quantization.group_size) == ("weight_only_int4", 128)
    assert run.origins["quant_type"].note == "do_gptq rounds weights only"
    assert run.training.do_train is False
    assert load().quantization.quant_type == "a8w8"


def test_awq_gets_groups_unless_told_otherwise() -> None:
    def group_size(*overrides: str) -> int | None:
        return load("do_ptq=false", "do_awq=true", *overrides).quantization.group_size

    assert group_size() == 128
    assert group_size("group_size=0") == 0
    assert group_size("weight_quant_method=abs_max_channel_wise") is None
    assert group_size("quant_type=weight_only_int8") is None
    assert group_size("quant_type=nf4") is None


def test_spellings_of_formats() -> None:
    assert [weight_format(one) for one in ("INT8", "weight-only-int4", "WINT4", "nf4", "int3")] == [
        "int8", "int4", "int4", "nf4", None,
    ]  # fmt: skip
