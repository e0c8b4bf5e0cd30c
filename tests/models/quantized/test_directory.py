"""Quantized model directories: written, loaded and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlesft.errors import ModelDirectoryError
from paddlesft.inference.generation import generate
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models.decoders import decoder_of
from paddlesft.models.families import FAMILIES
from paddlesft.models.load import load_model, save_model_directory
from paddlesft.models.quantized.directory import KEY, put_layer, quantized_layers, read_records
from paddlesft.models.quantized.formats import WeightFormat, quantize
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.models.weights import read_weights
from tests.tiny_quantized import write_quantized

INT4 = WeightFormat("int4")


def quantized(directory: Path, how: WeightFormat = INT4) -> nn.Layer:
    model = load_model(directory)
    for name, layer in list(model.named_sublayers()):
        if isinstance(layer, nn.Linear):
            put_layer(model, name, QuantizedLinear.of(layer, how))
    return model


def logits(model: nn.Layer) -> np.ndarray:
    decoder = decoder_of(model)
    ids = paddle.to_tensor([decoder.as_prompt(list(range(5, 15)))])
    with paddle.no_grad():
        hidden, _ = decoder.run(ids)
        return decoder.logits(hidden).numpy()


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_loaded_model_computes_the_same(name: str, tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    model = quantized(tiny_family(name))
    save_model_directory(model, tiny_family(name), tmp_path)
    loaded = load_model(tmp_path)
    assert quantized_layers(loaded).keys() == quantized_layers(model).keys() != set()
    np.testing.assert_array_equal(logits(loaded), logits(model))


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_how_activations_are_rounded_is_kept(tiny_llama: Path, tmp_path: Path, activations: str) -> None:
    model = load_model(tiny_llama)
    for name, layer in list(model.named_sublayers()):
        if isinstance(layer, nn.Linear):
            new = QuantizedLinear(*layer.weight.shape, WeightFormat("int8"), activations=activations)
            new.take(quantize(layer.weight, new.how))
            put_layer(model, name, new)
    save_model_directory(model, tiny_llama, tmp_path)
    loaded = load_model(tmp_path)
    assert {layer.activations for layer in quantized_layers(loaded).values()} == {activations}
    np.testing.assert_array_equal(logits(loaded), logits(model))


@pytest.mark.parametrize("kind", ["nf4", "awq"])
@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_tokens_are_those_of_the_float_model_with_the_dequantized_weights(
    name: str, kind: str, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    """Biases are equal by construction: these kinds neither shift inputs nor touch biases."""
    model, plain = (
        load_model(write_quantized(tmp_path / "quantized", tiny_family(name), kind)),
        load_model(tiny_family(name)),
    )
    layers = quantized_layers(model)
    for part, linear in plain.named_sublayers():
        if part in layers:
            linear.weight.set_value(layers[part].dequantized())
    np.testing.assert_allclose(logits(model), logits(plain), rtol=1e-3, atol=1e-4)
    decoder = decoder_of(model)
    prompts = [decoder.as_prompt(list(range(5, 15))), decoder.as_prompt(list(range(30, 34)))]
    options = SamplingOptions(max_new_tokens=8)
    found, wanted = ([reply.token_ids for reply in generate(one, prompts, options)] for one in (model, plain))
    assert found == wanted and len(found[0]) == 8


def test_disk_holds_the_codes_and_nothing_else(tiny_llama: Path, tmp_path: Path) -> None:
    save_model_directory(quantized(tiny_llama), tiny_llama, tmp_path)
    tensors, _ = read_weights(tmp_path)
    name = "llama.layers.0.mlp.up_proj"
    assert f"{name}.weight" not in tensors
    assert {tensors[f"{name}.{part}"].dtype for part in ("quant_weight", "quant_scale")} == {"U8", "F32"}
    entry = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))[KEY]
    assert entry["quant_method"] == "paddlesft" and entry["layers"][name] == 0
    assert entry["kinds"] == [
        {"format": "int4", "group_size": 0, "double_quantization": False, "scales_per_block": 256,
         "activations": "", "reshaped_input": False, "bias": False}
    ]  # fmt: skip


def test_other_tools_refuse_the_directory(tiny_llama: Path, tmp_path: Path) -> None:
    """Rather than computing with random weights in the places of those that they do not find."""
    from paddlenlp.transformers import LlamaForCausalLM

    save_model_directory(quantized(tiny_llama), tiny_llama, tmp_path)
    with pytest.raises(ValueError, match="weight_quantize_algo:paddlesft not in supported list"):
        LlamaForCausalLM.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "was quantized by 'gptq', which is not read here. Give the model in float32"),
        ({"version": 9}, "has version 9; this version of paddlesft reads 1. Update paddlesft."),
        ({"kinds": []}, "is damaged (IndexError('list index out of range')). Get the directory again."),
        ({"layers": {"llama.layers.0.nothing": 0}}, "names llama.layers.0.nothing, but there is nothing in a model"),
        ({"layers": {"llama.norm": 0}}, "names llama.norm, but there is a LlamaRMSNorm in a model of this config"),
        ({"kinds": [{"format": "int4", "activations": "often"}]}, "damaged (ModelDirectoryError(\"activations 'often'"),
        ({"kinds": [{"format": "int8"}]}, "is [32, 64] instead of [64, 64]"),
    ],
)
def test_what_is_wrong_is_named(tiny_llama: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_model_directory(quantized(tiny_llama), tiny_llama, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config[KEY] |= change
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelDirectoryError) as caught:
        load_model(tmp_path)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_missing_codes_are_missed(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_model_directory(quantized(tiny_llama), tiny_llama, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["llama.layers.1.mlp.up_proj.quant_scale"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "np"})
    with pytest.raises(
        ModelDirectoryError, match=r"lacks 1 of \d+ weights.*llama\.layers\.1\.mlp\.up_proj\.quant_scale"
    ):
        load_model(tmp_path)


def test_plain_directories_have_no_records() -> None:
    assert read_records({}, "config.json") == read_records({KEY: {"quant_type": None}}, "config.json") == {}
