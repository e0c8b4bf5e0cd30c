"""Keys about the quantized base of an adapter: contradictions, and what does not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.config import RunConfig, load_run_config
from paddlesft.errors import ConfigError

RUN = ["model_name_or_path=m", "output_dir=out", "dataset_name_or_path=data"]


def load(*overrides: str, algorithm: str = "nf4") -> RunConfig:
    return load_run_config(None, [*RUN, f"weight_quantize_algo={algorithm}", *overrides])


def test_qlora_and_prefixes_over_a_quantized_base_are_fine() -> None:
    for method in ("lora", "prefix_tuning"):
        run = load(f"{method}=true", "weight_blocksize=32", "weight_double_quant=true")
        assert (run.model.weight_quantize_algo, run.model.weight_blocksize) == ("nf4", 32)
        assert not run.notices


def test_evaluation_alone_needs_no_adapter() -> None:
    load("do_train=false", "do_eval=true")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [],
            "weight_quantize_algo: found nf4, but lora and prefix_tuning are false: quantized weights cannot be "
            "trained. Set lora: true (QLoRA) or prefix_tuning: true, or remove weight_quantize_algo to train all "
            "weights.",
        ),
        (
            ["do_ptq=true"],
            "weight_quantize_algo quantizes the base while it is loaded, do_ptq the float model, which is needed for "
            "it. Remove weight_quantize_algo; quant_type says what comes out.",
        ),
    ],
)
def test_contradictions(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert str(caught.value).endswith(f"command line: {message}")


def test_contradictions_name_their_place(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_name_or_path: m\noutput_dir: out\ndataset_name_or_path: data\nlora: false\nweight_quantize_algo: fp4\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"run\.yaml:5.*run\.yaml:4: weight_quantize_algo: found fp4, but lora"):
        load_run_config(path)


@pytest.mark.parametrize(
    ("algorithm", "overrides", "notices"),
    [
        (
            "null",
            ["weight_blocksize=32", "weight_double_quant=true"],
            [
                "weight_blocksize has no effect while weight_quantize_algo is not set.",
                "weight_double_quant has no effect while weight_quantize_algo is not set.",
            ],
        ),
        (
            "weight_only_int8",
            ["weight_blocksize=32", "weight_double_quant_block_size=64"],
            [
                "weight_blocksize has no effect with weight_quantize_algo weight_only_int8, which has one scale for "
                "each output.",
                "weight_double_quant_block_size has no effect while weight_double_quant is off.",
            ],
        ),
        ("nf4", ["weight_blocksize=64"], []),  # its default
    ],
)
def test_keys_that_do_not_count_are_said(algorithm: str, overrides: list[str], notices: list[str]) -> None:
    found = load("lora=true", *overrides, algorithm=algorithm).notices
    assert [notice.partition("command line: ")[2] for notice in found] == notices


@pytest.mark.parametrize(
    ("kind", "double"),
    [
        ("weight_only_int8", ["weight_double_quant has no effect with quant_type weight_only_int8, whose scales stay "
                              "floats; it is for nf4 and fp4."]),
        ("nf4", []),
    ],
)  # fmt: skip
def test_beside_a_quantization_the_key_that_counts_is_named(kind: str, double: list[str]) -> None:
    keys = ["weight_blocksize=32", "weight_double_quant=true", "weight_double_quant_block_size=64"]
    quantization = ["do_ptq=true", f"quant_type={kind}", "do_train=false", "lora=false"]
    found = load(*quantization, *keys, algorithm="null").notices
    assert [notice.partition("command line: ")[2] for notice in found] == [
        "weight_blocksize has no effect with do_ptq; there group_size says how many weights share a scale.",
        "weight_double_quant_block_size has no effect with do_ptq, which takes 256.",
        *double,
    ]
