"""Dequantized directories compute what the quantized ones do; refusals of what no floats can stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints.dequantize import dequantize
from paddlesft.checkpoints.verify import logits_of
from paddlesft.errors import CheckpointError, ModelDirectoryError
from paddlesft.models import fingerprint, load_model, read_provenance, write_hugging_face
from paddlesft.models.pipeline import load_stage
from paddlesft.models.quantized.directory import KEY
from paddlesft.models.stored import stored_weights
from tests.models.test_hugging_face import tree_hash
from tests.tiny_families import write_tiny_family
from tests.tiny_models import write_tiny_llama
from tests.tiny_quantized import write_quantized

PROMPTS = [[5, 6, 7, 8], list(range(100, 130))]


@pytest.fixture(scope="module")
def base(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny", smollm2, initializer_range=0.2)


@pytest.fixture(scope="module")
def int4(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("int4") / "int4", base, "int4", chat_template="alpaca")


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4", "awq"])
def test_floats_compute_the_same(kind: str, base: Path, int4: Path, tmp_path: Path) -> None:
    source = int4 if kind == "int4" else write_quantized(tmp_path / kind, base, kind)
    before = tree_hash(source)
    report = dequantize(source, tmp_path / "floats")
    assert tree_hash(source) == before and report.layers == 14 and report.comparison.passed
    weights = stored_weights(tmp_path / "floats")
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in stored_weights(base).items()
    }
    assert KEY not in json.loads((tmp_path / "floats" / "config.json").read_text(encoding="utf-8"))
    for ours, theirs in zip(logits_of(load_model(report.output), PROMPTS), logits_of(load_model(source), PROMPTS)):
        np.testing.assert_allclose(ours, theirs, atol=report.comparison.bound)
    if kind == "int8":  # against the definition: codes times scales
        name, stored = "llama.layers.0.mlp.up_proj", stored_weights(source)
        exact = stored[f"{name}.quant_weight"].make().astype(np.float64) * stored[f"{name}.quant_scale"].make()
        np.testing.assert_allclose(weights[f"{name}.weight"].make(), exact, rtol=1e-6)


def test_what_is_known_is_kept(int4: Path, base: Path, tmp_path: Path) -> None:
    dequantize(int4, tmp_path / "floats", dtype="bfloat16")
    facts = read_provenance(tmp_path / "floats")
    assert facts["source"] == {"name": str(int4), "format": "dequantized", "fingerprint": fingerprint(int4)}
    assert facts["base"]["fingerprint"] == fingerprint(base) and facts["chat_template"] == "alpaca"
    assert (facts["dtype"], facts["stood_in"]) == ("bfloat16", "int4")
    assert {tensor.dtype for tensor in stored_weights(tmp_path / "floats").values()} == {"BF16"}


def test_biases_take_shifts(tmp_path: Path) -> None:
    """Layers with biases (GPT) whose inputs are shifted, their activations left as they are."""
    import paddle

    from paddlesft.models.load import save_model_directory
    from paddlesft.models.quantized.directory import quantized_layers

    source = write_quantized(tmp_path / "awq", write_tiny_family("gpt", tmp_path / "gpt"), "awq")
    model = load_model(source)
    for layer in quantized_layers(model).values():
        layer.input_shift.set_value(paddle.linspace(-0.5, 0.5, layer.in_features))
    (tmp_path / "shifted").mkdir()
    save_model_directory(model, source, tmp_path / "shifted")
    assert dequantize(tmp_path / "shifted", tmp_path / "floats").comparison.passed


def test_refusals(base: Path, int4: Path, tmp_path: Path) -> None:
    a8w8 = write_quantized(tmp_path / "a8w8", base, "a8w8")
    with pytest.raises(ModelDirectoryError, match=r"14 layers round their activations .* float model .*tiny"):
        dequantize(a8w8, tmp_path / "no")
    with pytest.raises(ModelDirectoryError, match="tiny holds float weights already: there is nothing to dequantize"):
        dequantize(base, tmp_path / "no")
    with pytest.raises(CheckpointError, match=r"lies in .*int4, which is never changed"):
        dequantize(int4, int4 / "inside")
    assert not (tmp_path / "no").exists()


def test_what_needs_floats_says_so(base: Path, int4: Path, tmp_path: Path) -> None:
    from paddlesft.checkpoints.merge_shards import merge_shards
    from paddlesft.checkpoints.split_shards import split_shards

    advice = (
        rf"holds weights in int4; float weights are needed .* \({base}\), or .*: paddlesft dequantize {int4} NEW_DIR"
    )
    for attempt in (
        lambda: write_hugging_face(int4, tmp_path / "no"),
        lambda: split_shards(int4, tmp_path / "no", tensor_parallel_degree=2),
        lambda: load_model(int4, tensor_parallel=(2, 0)),
        lambda: load_stage(int4),
    ):
        with pytest.raises(ModelDirectoryError, match=advice):
            attempt()
    with pytest.raises(ModelDirectoryError, match="neither divided nor put together from parts"):
        merge_shards(int4, tmp_path / "no", copy_whole=True)
    a8w8 = write_quantized(tmp_path / "a8w8", base, "a8w8")
    with pytest.raises(ModelDirectoryError) as caught:
        write_hugging_face(a8w8, tmp_path / "no")
    assert "weights in int8 with activations of 8 bits" in str(caught.value)
    assert "paddlesft dequantize" not in str(caught.value)  # nothing it could write


def test_transformers_refuses_the_directory(oracle: Callable[..., dict], int4: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    with pytest.raises(AssertionError, match="Incompatible safetensors file"):
        oracle("logits.py", int4, tmp_path / "prompts.json", tmp_path / "out.npz", 0)
    assert not (tmp_path / "out.npz").exists()


def test_export_of_dequantized_floats(int4: Path, tmp_path: Path) -> None:
    dequantize(int4, tmp_path / "floats")
    write_hugging_face(tmp_path / "floats", tmp_path / "hf")
    for ours, theirs in zip(logits_of(load_model(tmp_path / "hf"), PROMPTS), logits_of(load_model(int4), PROMPTS)):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
