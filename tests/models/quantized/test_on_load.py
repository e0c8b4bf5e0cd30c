"""Float bases that are quantized while they are loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlesft.errors import ConfigError, ModelDirectoryError
from paddlesft.models import write_hugging_face
from paddlesft.models.decoders import decoder_of
from paddlesft.models.families import FAMILIES
from paddlesft.models.load import load_model, save_model_directory
from paddlesft.models.quantized import on_load
from paddlesft.models.quantized.decoder_linears import decoder_linears
from paddlesft.models.quantized.directory import put_layer, quantized_layers
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.models.quantized.on_load import entry_of_base, format_of_base, format_of_keys
from paddlesft.models.weights import TORCH_LAYOUT, read_weights

NF4 = WeightFormat("nf4", 64, True)


def codes(model: nn.Layer) -> dict[str, np.ndarray]:
    return {
        f"{name}.{key}": tensor.numpy()
        for name, layer in quantized_layers(model).items()
        for key, tensor in layer.state_dict().items()
    }


def logits(model: nn.Layer) -> np.ndarray:
    decoder = decoder_of(model)
    with paddle.no_grad():
        hidden, _ = decoder.run(paddle.to_tensor([decoder.as_prompt(list(range(5, 15)))]))
        return decoder.logits(hidden).numpy()


def quantized_afterwards(directory: Path, how: WeightFormat) -> nn.Layer:
    model = load_model(directory)
    for name, layer in decoder_linears(model).items():
        put_layer(model, name, QuantizedLinear.of(layer, how))
    return model


def assert_same(model: nn.Layer, wanted: nn.Layer) -> None:
    expected = codes(wanted)
    found = codes(model)
    assert found.keys() == expected.keys() != set()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    np.testing.assert_array_equal(logits(model), logits(wanted))


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_codes_are_those_of_the_loaded_model(name: str, tiny_family: Callable[[str], Path]) -> None:
    directory = tiny_family(name)
    assert_same(load_model(directory, quantize=NF4), quantized_afterwards(directory, NF4))


@pytest.mark.parametrize("how", [WeightFormat("int8"), WeightFormat("int4"), WeightFormat("fp4", 32)], ids=str)
def test_formats(tiny_llama: Path, how: WeightFormat) -> None:
    assert_same(load_model(tiny_llama, quantize=how), quantized_afterwards(tiny_llama, how))


def test_hugging_face_directories(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    """Torch's layout, and Gemma's head, which is its embedding."""
    directory = write_hugging_face(tiny_family("gemma"), tmp_path / "hf")
    assert read_weights(directory)[1] == TORCH_LAYOUT
    loaded = load_model(directory, quantize=NF4)
    assert loaded.config.tie_word_embeddings
    assert_same(loaded, quantized_afterwards(tiny_family("gemma"), NF4))


def test_pdparams(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(tiny_llama)
    model.save_pretrained(str(tmp_path), safe_serialization=False)
    assert not list(tmp_path.glob("*.safetensors"))
    assert_same(load_model(tmp_path, quantize=NF4), quantized_afterwards(tiny_llama, NF4))


def test_one_float_weight_exists_at_a_time(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the Linear layers that are to be quantized, none has a float weight while another is being rounded."""
    models: list[nn.Layer] = []
    alive: list[int] = []
    original, empty = on_load.quantize, on_load.decoder_linears

    def remember(model: nn.Layer) -> dict[str, nn.Linear]:
        models.append(model)
        return empty(model)

    def watch(weight: paddle.Tensor, how: WeightFormat) -> dict[str, paddle.Tensor]:
        alive.append(sum(layer.weight._is_initialized() for layer in empty(models[-1]).values()))
        return original(weight, how)

    monkeypatch.setattr(on_load, "decoder_linears", remember)
    monkeypatch.setattr(on_load, "quantize", watch)
    loaded = load_model(tiny_llama, quantize=NF4)
    assert len(alive) == len(quantized_layers(loaded)) > 0
    assert set(alive) == {0}
    assert not empty(loaded)


def test_quantized_directories_are_not_quantized_again(tiny_llama: Path, tmp_path: Path) -> None:
    save_model_directory(load_model(tiny_llama, quantize=NF4), tiny_llama, tmp_path)
    with pytest.raises(ModelDirectoryError, match="is quantized already; it cannot be quantized to int8 while it is"):
        load_model(tmp_path, quantize=WeightFormat("int8"))
    assert_same(load_model(tmp_path), load_model(tiny_llama, quantize=NF4))


def test_missing_and_misshapen_weights_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = load_model(tiny_llama)
    save_model_directory(model, tiny_llama, tmp_path)
    name = "llama.layers.1.mlp.up_proj.weight"
    tensors = load_file(tmp_path / "model.safetensors")
    whole = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "np"})
    with pytest.raises(ModelDirectoryError, match=rf"lacks 1 of \d+ weights.*{re.escape(name)}"):
        load_model(tmp_path, quantize=NF4)
    save_file(tensors | {name: whole[:8]}, tmp_path / "model.safetensors", metadata={"format": "np"})
    with pytest.raises(ModelDirectoryError, match=rf"1 weights have other sizes .*{re.escape(name)} is \[8, "):
        load_model(tmp_path, quantize=NF4)


@pytest.mark.parametrize(
    ("keys", "how"),
    [
        ((None,), None),
        (("nf4",), WeightFormat("nf4", 64)),
        (("fp4", 32, True, 128), WeightFormat("fp4", 32, True, 128)),
        (("weight_only_int8", 64), WeightFormat("int8", 0)),
        (("weight_only_int4", 64, True), WeightFormat("int4", 0, True)),
    ],
)
def test_keys_give_formats(keys: tuple, how: WeightFormat | None) -> None:
    assert format_of_keys(*keys) == how


@pytest.mark.parametrize("algorithm", ["llm.int8", "nf5"])
def test_refused_algorithms(algorithm: str) -> None:
    with pytest.raises(ConfigError, match=f"found '{algorithm}', allowed are nf4, fp4, weight_only_int8, weight_only_"):
        format_of_keys(algorithm)


@pytest.mark.parametrize("how", [NF4, WeightFormat("nf4", 64, True, 128), WeightFormat("int4")], ids=str)
def test_provenance_gives_the_format_back(how: WeightFormat) -> None:
    assert format_of_base({"base_quantization": entry_of_base(how)}) == how


def test_provenance_without_and_with_a_damaged_entry() -> None:
    assert format_of_base({}) is None
    entry = {"format": "nf4", "group_size": 64, "double_quantization": True}
    assert format_of_base({"base_quantization": entry}) == NF4
    with pytest.raises(ModelDirectoryError, match=r"base_quantization is damaged.*Get the adapter's directory again"):
        format_of_base({"base_quantization": {"format": "nf9", "group_size": 64, "double_quantization": True}})
