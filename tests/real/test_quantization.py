"""Quantization of the real model: what the figures in docs/quantize.md say, on few rows and some of the layers.

Quality is measured by the benchmark's own functions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

REPO = Path(__file__).resolve().parents[2]
BENCHMARKS, SAMPLE = REPO / "benchmarks", REPO / "paddlesft" / "data" / "samples" / "identity.jsonl"
ALL_BUT_SIX = (r".*layers\.([6-9]|\d\d)\..*",)  # of 30 decoder layers
GROUP = 128

pytestmark = pytest.mark.slow


class Measured:
    """Perplexities after quantization, each measured once.

    Args:
        data: directory with train.jsonl to calibrate on and test.jsonl to measure on.
        rows: how many are used of each.
    """

    def __init__(self, data: Path, rows: int) -> None:
        sys.path.insert(0, str(BENCHMARKS))
        try:
            import quantization_quality
        finally:
            sys.path.remove(str(BENCHMARKS))
        self.methods = quantization_quality.METHODS
        self.setting = quantization_quality.Setting(
            argparse.Namespace(data=data, calibration_rows=rows, rows=rows, jobs=1)
        )
        self.known: dict[tuple[str, bool], float] = {}

    def increase(self, key: str, six_layers: bool = False) -> float:
        """Return by which share a method of the benchmark raises the perplexity, on all layers or on six."""
        return self._perplexity(key, six_layers) / self._perplexity("float32", False) - 1

    def _perplexity(self, key: str, six_layers: bool) -> float:
        if (key, six_layers) not in self.known:
            method = self.methods[key]
            if six_layers:
                method = replace(method, recipe=replace(method.recipe, skip=ALL_BUT_SIX))
            self.known[key, six_layers] = self.setting.measure(method)["perplexity"]
        return self.known[key, six_layers]


@pytest.fixture(scope="module")
def on_sample(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """On the sample of the package, whose perplexity is that of text the model does not know."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)
    data = tmp_path_factory.mktemp("data")
    (data / "train.jsonl").write_text("".join(lines[:12]), encoding="utf-8")
    (data / "test.jsonl").write_text("".join(lines[12:24]), encoding="utf-8")
    return Measured(data, 12)


@pytest.fixture(scope="module")
def on_gsm8k(smollm2: Path, gsm8k_dir: Path) -> Measured:
    """On text that the model expects: there a small loss shows, where the sample's perplexity may even fall."""
    return Measured(gsm8k_dir, 6)


def test_wint8_keeps_the_perplexity_within_one_percent(on_sample: Measured) -> None:
    assert abs(on_sample.increase("wint8")) < 0.01


def test_gptq_on_six_layers_loses_far_less_than_rounding_to_the_nearest(on_gsm8k: Measured) -> None:
    nearest, gptq = (on_gsm8k.increase(key, six_layers=True) for key in ("rtn-128", "gptq-128"))
    assert nearest > 0.02  # there is something to win
    assert gptq < 0.6 * nearest


def test_smoothing_repairs_what_outliers_in_activations_do_to_a8w8_on_six_layers(on_sample: Measured) -> None:
    plain, smooth = (on_sample.increase(key, six_layers=True) for key in ("outlier-a8w8", "outlier-smooth"))
    assert plain > 0.1
    assert abs(smooth) < 0.2 * plain


def test_a_stored_wint4_model_is_what_transformers_computes_with_weights_rounded_by_numpy(
    on_sample: Measured, smollm2: Path, tmp_path: Path, oracle: Callable[..., dict]
) -> None:
    from paddlesft.checkpoints.verify import PROMPTS, logits_of
    from paddlesft.models import load_model, load_tokenizer, write_hugging_face
    from paddlesft.models.load import save_model_directory
    from paddlesft.models.quantized.directory import quantized_layers
    from paddlesft.quantization.quantize_model import quantize_model

    model = load_model(smollm2, dtype="float32")
    quantize_model(model, on_sample.setting.batches[:1], on_sample.methods["rtn-128"].recipe)
    save_model_directory(model, smollm2, tmp_path / "int4", source="test")
    stored = load_model(tmp_path / "int4")
    torch_directory = write_hugging_face(smollm2, tmp_path / "torch")
    file = torch_directory / "model.safetensors"
    tensors = load_file(file)
    layers = quantized_layers(stored)
    assert len(layers) == 7 * 30
    for name, layer in layers.items():
        key = f"{name.removeprefix('llama.') if name.startswith('llama.') else name}.weight"
        key = key if key in tensors else f"model.{key}"
        rounded = nearest_int4(tensors[key].astype(np.float32))
        np.testing.assert_allclose(layer.dequantized().numpy().T, rounded, rtol=1e-6, atol=1e-8)
        tensors[key] = rounded
    save_file(tensors, file, metadata={"format": "pt"})

    prompts = [load_tokenizer(smollm2)(text)["input_ids"] for text in PROMPTS]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    oracle("logits.py", torch_directory, tmp_path / "prompts.json", tmp_path / "logits.npz", 0)
    with np.load(tmp_path / "logits.npz") as theirs:
        for i, ours in enumerate(logits_of(stored, prompts)):
            assert np.abs(ours - theirs[str(i)]).max() < 1e-4 * np.abs(theirs[str(i)]).max()


def nearest_int4(weight: np.ndarray) -> np.ndarray:
    """Round a weight [o, i] to 15 steps between -a and a in each group, a being its largest number, in float32."""
    rounded = np.empty_like(weight)
    for begin in range(0, weight.shape[1], GROUP):
        group = weight[:, begin : begin + GROUP]
        step = np.abs(group).max(axis=1, keepdims=True) / 7
        rounded[:, begin : begin + GROUP] = np.round(group / step) * step
    return rounded
