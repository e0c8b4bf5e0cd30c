"""How rows are put into batches does not matter: neither their padding nor their number in a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from paddle import nn

from paddlesft.models.decoders import decoder_of
from paddlesft.models.load import load_model
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.quantization.quantize_model import quantize_model
from paddlesft.quantization.recipe import Recipe

RECIPES = {
    "gptq": Recipe("weight_only_int4", gptq=True),
    "awq": Recipe("weight_only_int4", awq=True, clip=True, group_size=32),
    "smooth": Recipe("a8w8", smooth=True, smooth_all=True),
    "largest": Recipe("a8w8", activations="abs_max"),
}


def rows_of(model: nn.Layer) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [decoder_of(model).as_prompt(random.integers(5, 40, n).tolist()) for n in (21, 9, 30, 14)]


def batch(rows: list[list[int]], padding: int = 0) -> dict[str, np.ndarray]:
    width = max(map(len, rows)) + padding
    return {
        "input_ids": np.asarray([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": np.asarray([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }


@pytest.mark.parametrize("family", ["llama", "chatglm"])  # ChatGLM keeps tokens in front of rows
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_padding_and_batch_size_change_nothing(recipe: Recipe, family: str, tiny_family: Callable[[str], Path]) -> None:
    path = tiny_family(family)
    found = []
    for size, padding in ((1, 0), (2, 0), (4, 7)):
        model = load_model(path)
        rows = rows_of(model)
        given = [batch(rows[i : i + size], padding) for i in range(0, len(rows), size)]
        quantize_model(model, given, recipe)
        found.append(quantized_layers(model))
    for others in found[1:]:
        for name, layer in found[0].items():
            other = others[name]
            same = layer.quant_weight.numpy() == other.quant_weight.numpy()
            assert same.mean() > 0.995  # the last bit of an activation can turn a tie
            for scale in ("quant_scale", "act_scale", "input_scale"):
                if hasattr(layer, scale):
                    ours, theirs = getattr(layer, scale).numpy(), getattr(other, scale).numpy()
                    assert np.isclose(ours, theirs, rtol=1e-3).mean() > 0.99
