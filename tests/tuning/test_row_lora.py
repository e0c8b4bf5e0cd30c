"""LoRA adapters that compute single rows of a batch: what is read, and what rows cannot have for themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models import load_model
from paddlesft.models.stored import load_pdparams
from paddlesft.tuning.lora import CONFIG_FILE, PDPARAMS
from paddlesft.tuning.row_lora import RowAdapters, put_row_lora, read_row_lora
from tests.inference.adapters import write_adapter

LAYER = "llama.layers.1.self_attn.q_proj"


@pytest.fixture
def model(tiny_llama: Path) -> paddle.nn.Layer:
    return load_model(tiny_llama)


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", tiny_llama, "lora")


def change(adapter: Path, weights: Callable[[dict[str, Any]], None] = lambda found: None, **entries: Any) -> Path:
    """Change weights and config of an adapter."""
    found = load_pdparams(adapter / PDPARAMS, return_numpy=True)
    weights(found)
    paddle.save({name: paddle.to_tensor(array) for name, array in found.items()}, str(adapter / PDPARAMS))
    config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8")) | entries
    (adapter / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return adapter


def test_updates_of_several_adapters_are_added_to_their_rows(model: paddle.nn.Layer, adapter: Path) -> None:
    draw = np.random.default_rng(0)

    def mixer(found: dict[str, Any]) -> None:
        for name in [name for name in found if name.endswith("lora_A")]:
            found[name.replace("lora_A", "lora_AB")] = draw.normal(size=(4, 4)).astype(np.float32)

    one = read_row_lora(model, adapter)
    other = read_row_lora(model, change(adapter, mixer, lora_use_mixer=True, rslora=True))
    assert (one[LAYER].scaling, other[LAYER].scaling) == (4.0, 8.0)
    assert not np.allclose(one[LAYER].a, other[LAYER].a)  # A AB
    del other[LAYER.replace("q_proj", "k_proj")]
    weights = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
    layers = dict(model.named_sublayers())
    x = draw.normal(size=(4, 3, 64)).astype(np.float32)
    rows = put_row_lora(model, {"one": one, "other": other})
    for name, shared in ((LAYER, True), (LAYER.replace("q_proj", "k_proj"), False)):
        changed = dict(model.named_sublayers())[name]
        assert changed.base is layers[name]
        rows.choose(["other", None, "one", "other"])
        found = changed(paddle.to_tensor(x)).numpy()
        for row, updates in enumerate([other if shared else {}, {}, one, other if shared else {}]):
            wanted = weights[f"{name}.weight"]
            if name in updates:
                update = updates[name]
                wanted = wanted + update.scaling * update.a.astype(np.float64) @ update.b.astype(np.float64)
            np.testing.assert_allclose(found[row], x[row] @ wanted, atol=1e-4)


def test_weights_in_sixteen_bits_are_read(model: paddle.nn.Layer, adapter: Path) -> None:
    wanted = read_row_lora(model, adapter)[LAYER]
    found = load_pdparams(adapter / PDPARAMS, return_numpy=True)
    halves = {name: paddle.to_tensor(array).astype("bfloat16") for name, array in found.items()}
    paddle.save(halves, str(adapter / PDPARAMS))
    update = read_row_lora(model, adapter)[LAYER]
    np.testing.assert_allclose(update.a, wanted.a, rtol=2**-8)
    np.testing.assert_allclose(update.b, wanted.b, rtol=2**-8)


def test_factors_are_made_once_for_a_batch_and_only_for_its_adapters() -> None:
    rows, columns = RowAdapters(), (("a", 2, 0.5), ("b", 1, 3.0), ("c", 1, 7.0))
    rows.choose([None, "b", "a"])
    place, factors = rows.factors(columns, paddle.float32)
    assert place == (0, 3) and factors.numpy()[:, 0].tolist() == [[0, 0, 0], [0, 0, 3], [0.5, 0.5, 0]]
    rows.choose([None, "b", "a"])
    assert rows.factors(columns, paddle.float32)[1] is factors
    assert rows.factors((("d", 4, 1.0),), paddle.float32) is None
    rows.choose(["c", "b"])
    place, factors = rows.factors(columns, paddle.float32)
    assert place == (2, 4) and factors.numpy()[:, 0].tolist() == [[0, 7], [3, 0]]
    rows.choose([None, None])
    assert rows.factors(columns, paddle.float32) is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"trainable_bias": "lora"}, r"has biases \(trainable_bias: lora\), which a row .*Make a model of its own"),
        ({"pissa": True, "use_mora": True}, "has PiSSA, which changes the base weights too and MoRA's square updates,"),
        ({"trainable_modules": [".*norm.*"]}, r"has whole layers \(trainable_modules: \.\*norm\.\*\)"),
        ({"r": 5}, r"does not fit this base model: .*shapes differ \(first: llama.*lora_A is \[64, 4\], the model ne"),
        ({"target_modules": [".*q_proj"]}, r"does not fit this base model: \d+ tensors have no place in this model"),
    ],
)
def test_what_rows_cannot_have_is_refused(
    model: paddle.nn.Layer, adapter: Path, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelDirectoryError, match=message):
        read_row_lora(model, change(adapter, **entries))


def test_damaged_weights_are_refused(model: paddle.nn.Layer, adapter: Path) -> None:
    def whole(found: dict[str, Any]) -> None:
        found[f"{LAYER}.bias"] = np.zeros(64, np.float32)

    def infinite(found: dict[str, Any]) -> None:
        del found[f"{LAYER}.bias"]
        found[f"{LAYER}.lora_A"][3, 1] = np.inf

    for how, message in (
        (whole, rf"it replaces 1 weights as a whole \(first: {LAYER}\.bias\), for all rows"),
        (infinite, f"the adapter of {LAYER} holds numbers that are not finite, which would reach the rows of other"),
    ):
        with pytest.raises(ModelDirectoryError, match=message):
            read_row_lora(model, change(adapter, how))
    (adapter / CONFIG_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match=rf"{CONFIG_FILE} cannot be read"):
        read_row_lora(model, adapter)
    (adapter / CONFIG_FILE).unlink()
    with pytest.raises(ModelDirectoryError, match=rf"has no {CONFIG_FILE}"):
        read_row_lora(model, adapter)
