"""From config keys to a recipe; patterns that fit nothing are refused with the names that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.errors import ConfigError
from paddlesft.quantization.configured_recipe import configured_recipe, refuse_patterns_without_layers
from paddlesft.quantization.recipe import Recipe
from paddlesft.quantization.smoothing import PieceSearch
from tests.quantization.rows import quantization_config

NAMES = [f"llama.layers.{i}.{part}" for i in range(2) for part in ("self_attn.q_proj", "mlp.down_proj")]


def recipe(*overrides: str) -> Recipe:
    return configured_recipe(quantization_config("m", Path("out"), *overrides, data=Path("data")))


def test_every_key_arrives() -> None:
    found = recipe(
        "quant_type=A8W8", "ptq_step=5", "shift=true", "shift_all_linears=true", "shift_sampler=none", "shift_step=6",
        "smooth=true", "smooth_all_linears=true", "smooth_sampler=multi_step", "smooth_step=7",
        "smooth_piecewise_search=true", "smooth_k_piece=4", "smooth_search_piece=true", "search_alpha_min=0.1",
        "search_alpha_max=0.9", "search_scale_min=2", "search_scale_max=3", "act_quant_method=abs_max",
        "skip_list_names=[a.*]", "mixed_precision={b.*: WINT4, c: nf4}",
    )  # fmt: skip
    assert found == Recipe(
        "a8w8", skip=("a.*",), other_formats=(("b.*", "int4"), ("c", "nf4")), shift=True, shift_all=True,
        shift_sampler="none", smooth=True, smooth_all=True, smooth_sampler="multi_step",
        search=PieceSearch(4, True, 0.1, 0.9, 2.0, 3.0), activations="abs_max", steps=5, shift_steps=6, smooth_steps=7,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["do_ptq=false", "do_gptq=true", "gptq_step=3"], Recipe("weight_only_int4", gptq=True, gptq_steps=3)),
        (
            ["do_ptq=false", "do_awq=true", "awq_step=3", "weight_quant_method=groupwise"],
            Recipe("weight_only_int4", 128, awq=True, awq_steps=3),
        ),
        (
            ["quant_type=wint8", "auto_clip=true", "autoclip_step=3"],
            Recipe("weight_only_int8", clip=True, clip_steps=3),
        ),
        (
            ["quant_type=nf4", "group_size=32", "weight_double_quant=true"],
            Recipe("nf4", 32, double_quantization=True),
        ),
        (["quant_type=wint4", "weight_double_quant=true"], Recipe("weight_only_int4")),
        (["quant_type=llm.int8"], Recipe("llm.int8")),
    ],
    ids=str,
)
def test_methods(overrides: list[str], wanted: Recipe) -> None:
    assert recipe(*overrides) == wanted


def test_a_recipe_needs_a_method() -> None:
    with pytest.raises(ConfigError, match="Nothing to quantize by: set do_ptq, do_gptq or do_awq to true"):
        recipe("do_ptq=false", "do_eval=true")


def test_patterns_that_fit_no_layer() -> None:
    config = quantization_config(
        "m", Path("out"), "skip_list_names=[down_proj, .*q_prj, .*q_proj]", "mixed_precision={lm_head: int8}",
        data=Path("data"),
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        refuse_patterns_without_layers(config, configured_recipe(config), NAMES)
    assert str(caught.value).splitlines() == [
        "command line: skip_list_names: 'down_proj' fits the whole name of no Linear layer. Did you mean "
        "'.*down_proj.*'?",
        "command line: skip_list_names: '.*q_prj' fits the whole name of no Linear layer. Did you mean '.*q_proj'?",
        "command line: mixed_precision: 'lm_head' fits the whole name of no Linear layer.",
        "The model has (N: number of a layer) llama.layers.N.self_attn.q_proj, llama.layers.N.mlp.down_proj.",
    ]


def test_patterns_that_fit_pass() -> None:
    config = quantization_config("m", Path("out"), "skip_list_names=[.*layers.0.*]", data=Path("data"))
    refuse_patterns_without_layers(config, configured_recipe(config), NAMES)
