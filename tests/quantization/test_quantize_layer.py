"""Decoder layers with every recipe: they compute nearly what they did, and methods do what they are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlesft.models.families import FAMILIES
from paddlesft.models.load import load_model
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.quantization import quantize_layer as module
from paddlesft.quantization.inputs import Moments
from paddlesft.quantization.layer_walk import LayerWalk
from paddlesft.quantization.quantize_layer import LinearResult, quantize_layer
from paddlesft.quantization.recipe import Recipe
from paddlesft.quantization.smoothing import PieceSearch
from tests.quantization.test_layer_walk import batches

RECIPES = {
    "int8": Recipe("weight_only_int8"),
    "int4": Recipe("weight_only_int4"),
    "int4 groups": Recipe("weight_only_int4", group_size=16),
    "nf4": Recipe("nf4"),
    "fp4 groups": Recipe("fp4", group_size=32, double_quantization=True),
    "gptq": Recipe("weight_only_int4", gptq=True),
    "awq": Recipe("weight_only_int4", awq=True),
    "awq gptq": Recipe("weight_only_int4", awq=True, gptq=True),
    "awq clip": Recipe("weight_only_int4", awq=True, clip=True),
    "gptq nf4": Recipe("nf4", gptq=True, double_quantization=True),
    "all of int4": Recipe("weight_only_int4", awq=True, clip=True, gptq=True, group_size=24),  # which divides nothing
    "llm.int8": Recipe("llm.int8"),
    "a8w8": Recipe(),
    "a8w8 shift": Recipe(shift=True),
    "a8w8 smooth": Recipe(smooth=True),
    "a8w8 all": Recipe(shift=True, shift_all=True, smooth=True, smooth_all=True),
    "a8w8 search": Recipe(smooth=True, smooth_all=True, smooth_sampler="multi_step", search=PieceSearch()),
}


def quantize_model(model: nn.Layer, recipe: Recipe) -> list[LinearResult]:
    walk = LayerWalk(model, batches(model))
    return [result for name, layer in walk for result in quantize_layer(walk, name, layer, recipe)]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipes_on_llama(recipe: Recipe, tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    results = quantize_model(model, recipe)
    assert [one.name for one in results] == list(quantized_layers(model)) and len(results) == 14
    worst = max(one.error for one in results)
    assert 0 < worst < (0.002 if recipe.format_of("x").bits == 8 else 0.05)
    assert all(
        one.bytes_after < one.bytes_before * (0.4 if recipe.format_of("x").bits == 8 else 0.3) for one in results
    )


@pytest.mark.parametrize("quant_type", ["weight_only_int8", "a8w8"])
@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_families(name: str, quant_type: str, tiny_family: Callable[[str], Path]) -> None:
    model = load_model(tiny_family(name))
    results = quantize_model(model, Recipe(quant_type, smooth=True, shift=True))
    assert len(results) >= 8 and max(one.error for one in results) < 0.01


def test_linears_with_the_same_input_share_its_hessian(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Moments] = []

    class Counted(Moments):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(module, "Moments", Counted)
    model = load_model(tiny_llama)
    quantize_model(model, Recipe("weight_only_int4", gptq=True))
    assert len(made) == 2 * 4  # queries, keys and values; their output; gate and up; down
    tokens = sum(batch["attention_mask"].sum() for batch in batches(model))
    assert {one.tokens for one in made} == {tokens}


def test_shared_hessian_rounds_as_one_of_its_own(tiny_llama: Path) -> None:
    """Values, whose Hessian is that of the queries, are rounded as they are where they are the only Linear."""
    together, alone = load_model(tiny_llama), load_model(tiny_llama)
    first = r"llama\.layers\.0\.self_attn\.v_proj"
    quantize_model(together, Recipe("weight_only_int4", gptq=True, awq=True, clip=True))
    quantize_model(alone, Recipe("weight_only_int4", gptq=True, awq=True, clip=True, skip=(rf"(?!{first}).*",)))
    name = first.replace("\\", "")
    assert list(quantized_layers(alone)) == [name]
    ours, theirs = (quantized_layers(model)[name].quant_weight.numpy() for model in (together, alone))
    np.testing.assert_array_equal(ours, theirs)


def test_skipped_layers_stay_and_others_get_their_own_format(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    recipe = Recipe("weight_only_int4", skip=(r".*\.1\..*",), other_formats=((r".*down_proj", "int8"),))
    formats = {one.name: one.format for one in quantize_model(model, recipe)}
    assert len(formats) == 7 and all(".0." in name for name in formats)
    assert {name for name, form in formats.items() if form == "int8"} == {"llama.layers.0.mlp.down_proj"}
    assert isinstance(model.llama.layers[1].mlp.down_proj, nn.Linear)


def test_reshaping_alone_changes_nothing(tiny_llama: Path) -> None:
    """Shift and smooth with weights of 8 bits and no rounding of activations give the float layer back."""
    model, plain = load_model(tiny_llama), load_model(tiny_llama)
    quantize_model(model, RECIPES["a8w8 all"])
    for (_, layer), (_, linear) in zip(quantized_layers(model).items(), _linears(plain)):
        layer.activations = ""
        x = paddle.randn([3, layer.in_features])
        np.testing.assert_allclose(layer(x).numpy(), linear(x).numpy(), atol=0.05 * float(linear(x).abs().max()))
        assert isinstance(layer, QuantizedLinear) and float(layer.input_shift.abs().max()) > 0


def _linears(model: nn.Layer) -> list[tuple[str, nn.Linear]]:
    return [
        (name, part)
        for name, part in model.named_sublayers()
        if isinstance(part, nn.Linear) and name.startswith("llama.layers.")
    ]
