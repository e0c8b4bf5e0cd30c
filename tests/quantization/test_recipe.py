"""Which Linear gets which format."""

from __future__ import annotations

import pytest

from paddlesft.config import quantization_rules
from paddlesft.config.quantization import WEIGHT_FORMATS
from paddlesft.models.quantized.formats import TABLES, WeightFormat
from paddlesft.quantization.recipe import ACTIVATIONS, WEIGHTS, Recipe


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        (Recipe("weight_only_int8"), WeightFormat("int8")),
        (Recipe("weight_only_int4", group_size=128), WeightFormat("int4", 128)),
        (Recipe("nf4"), WeightFormat("nf4", 64)),
        (Recipe("fp4", group_size=0), WeightFormat("fp4", 64)),  # tables have no scale for a whole output
        (Recipe("nf4", group_size=32, double_quantization=True), WeightFormat("nf4", 32, True)),
        (Recipe("llm.int8", group_size=128), WeightFormat("int8")),
        (Recipe("a8w8", group_size=128), WeightFormat("int8")),  # integer products allow one scale for each output
    ],
)
def test_quant_type_and_group_size_make_a_format(recipe: Recipe, wanted: WeightFormat) -> None:
    assert recipe.format_of("llama.layers.0.mlp.up_proj") == wanted


def test_the_rules_of_the_config_know_the_same_types() -> None:
    """The config's room lies below this one, and has lists of its own."""
    assert set(quantization_rules.BUILT) == set(WEIGHTS)
    assert set(quantization_rules.WEIGHTS_ONLY) == set(WEIGHTS) - set(ACTIVATIONS)
    assert set(quantization_rules.TABLES) == set(TABLES)
    assert set(WEIGHT_FORMATS.values()) == set(WEIGHTS.values())


def test_first_expression_that_fits_the_whole_name_counts() -> None:
    recipe = Recipe("weight_only_int4", skip=(".*lm_head",), other_formats=((".*down", "int8"), (".*own|.*up", "nf4")))
    names = {"a.down": "int8", "a.up": "nf4", "a.upper": "int4"}
    assert {name: recipe.format_of(name).name for name in names} == names
    assert recipe.format_of("a.lm_head") is None


def test_layers_with_a_table_keep_their_activations() -> None:
    recipe = Recipe("a8w8", other_formats=((".*down", "nf4"),))
    assert recipe.activations_of(recipe.format_of("a.down")) == ""
    assert recipe.activations_of(recipe.format_of("a.up")) == "static"
    assert Recipe("llm.int8").activations_of(WeightFormat("int8")) == "dynamic"
    assert Recipe("weight_only_int8").activations_of(WeightFormat("int8")) == ""


def test_batches_are_those_of_the_longest_method_in_use() -> None:
    assert Recipe("nf4").batches == Recipe("llm.int8", smooth=True).batches == 1
    assert Recipe("weight_only_int4", gptq=True, awq=True, gptq_steps=3, awq_steps=5, smooth_steps=9).batches == 5
    assert Recipe("a8w8", steps=2, smooth=True, smooth_steps=9).batches == 9
