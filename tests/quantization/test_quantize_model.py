"""Whole models: every recipe's promise, and runs that were interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddlesft.models.load import load_model
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.quantization import quantize_model as module
from paddlesft.quantization.quantize_model import quantize_model
from paddlesft.quantization.recipe import Recipe
from tests.models.quantized.test_directory import logits
from tests.quantization.test_layer_walk import batches

GPTQ = Recipe("weight_only_int4", gptq=True)


def test_interrupted_run_goes_on_at_the_layer(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_model(tiny_llama)
    wanted = quantize_model(whole, batches(whole), GPTQ)
    real, done = module.quantize_layer, []

    def interrupted(walk, name, layer, recipe):
        if done:
            raise KeyboardInterrupt
        done.append(name)
        return real(walk, name, layer, recipe)

    monkeypatch.setattr(module, "quantize_layer", interrupted)
    model = load_model(tiny_llama)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(model, batches(model), GPTQ, tmp_path, "tiny")
    computed: list[str] = []

    def counted(walk, name, layer, recipe):
        computed.append(name)
        return real(walk, name, layer, recipe)

    monkeypatch.setattr(module, "quantize_layer", counted)
    model, seen = load_model(tiny_llama), []
    found = quantize_model(model, batches(model), GPTQ, tmp_path, "tiny", lambda *state: seen.append(state[:3]))
    assert computed == ["llama.layers.1"]
    assert found == wanted
    assert seen == [(1, 2, "llama.layers.0"), (2, 2, "llama.layers.1")]
    np.testing.assert_array_equal(logits(model), logits(whole))


@pytest.mark.parametrize(("recipe", "identity"), [(Recipe("weight_only_int8"), "tiny"), (GPTQ, "another model")])
def test_layers_of_another_run_are_not_used(recipe: Recipe, identity: str, tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(tiny_llama)
    quantize_model(model, batches(model), GPTQ, tmp_path, "tiny")
    model = load_model(tiny_llama)
    quantize_model(model, batches(model), recipe, tmp_path, identity)
    fresh = load_model(tiny_llama)
    quantize_model(fresh, batches(fresh), recipe)
    np.testing.assert_array_equal(logits(model), logits(fresh))


def test_later_layers_are_rounded_for_what_earlier_ones_put_out_now(tiny_llama: Path) -> None:
    """The second layer's codes differ from those of a run that leaves the first layer alone."""
    both, alone = load_model(tiny_llama), load_model(tiny_llama)
    quantize_model(both, batches(both), GPTQ)
    quantize_model(alone, batches(alone), Recipe("weight_only_int4", gptq=True, skip=(r".*layers\.0\..*",)))
    name = "llama.layers.1.mlp.down_proj"
    codes = [quantized_layers(model)[name].quant_weight.numpy() for model in (both, alone)]
    assert (codes[0] != codes[1]).any()
