"""Merging adapters that were trained over quantized weights: the choice, its two results, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints.merge_lora import merge_lora
from paddlesft.checkpoints.verify import logits_of
from paddlesft.errors import CheckpointError, ModelDirectoryError
from paddlesft.inference.loading import load_for_inference
from paddlesft.models import base_facts, fingerprint, load_model, read_provenance
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.on_load import entry_of_base
from paddlesft.tuning.lora import load_lora
from tests.inference.adapters import write_adapter
from tests.tiny_models import write_tiny_llama
from tests.tiny_quantized import write_quantized

PROMPTS = [[5, 6, 7, 8], list(range(100, 130))]
NF4 = WeightFormat("nf4", 16, True)


@pytest.fixture(scope="module")
def base(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny", smollm2, initializer_range=0.2)


@pytest.fixture(scope="module")
def int4(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("int4") / "int4", base, "int4")


@pytest.fixture(scope="module")
def over_int4(int4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the quantized directory."""
    return write_adapter(tmp_path_factory.mktemp("a") / "over_int4", int4, "lora")


@pytest.fixture(scope="module")
def qlora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the float model, quantized while it was loaded."""
    path = tmp_path_factory.mktemp("a") / "qlora"
    return write_adapter(path, base, "lora", base_quantization=entry_of_base(NF4))


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("a") / "plain", base, "lora")


def logits(directory: Path, adapter: Path | None = None, how: WeightFormat | None = None) -> list[np.ndarray]:
    model = load_model(directory, quantize=how)
    return logits_of(model if adapter is None else load_lora(model, adapter), PROMPTS)


def far(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b))


@pytest.mark.parametrize("trained", ["qlora", "over_int4"])
def test_dequantized_computes_what_training_saw(
    trained: str, base: Path, int4: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    adapter = request.getfixturevalue(trained)
    directory, how = (base, NF4) if trained == "qlora" else (int4, None)
    report = merge_lora(None, adapter, tmp_path / "merged", base_precision="dequantized")
    assert report.comparison.passed and report.from_training is None and report.dtype == "float32"
    assert far(logits(tmp_path / "merged"), logits(directory, adapter, how)) <= report.comparison.bound
    facts = read_provenance(tmp_path / "merged")["base"]
    assert facts["precision"] == "dequantized" and facts["fingerprint"] == fingerprint(directory)
    assert facts["trained_in"] == ("nf4 in groups of 16 with double quantization" if how else "int4")
    # and on from there: the merged directory is a float model
    assert write_quantized(tmp_path / "again", tmp_path / "merged", "int8").is_dir()


@pytest.mark.parametrize("trained", ["qlora", "over_int4"])
def test_full_precision_is_another_model(
    trained: str, base: Path, int4: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    adapter = request.getfixturevalue(trained)
    directory, how = (base, NF4) if trained == "qlora" else (int4, None)
    report = merge_lora(None, adapter, tmp_path / "merged", base_precision="full")
    merged = logits(tmp_path / "merged")
    assert far(merged, logits(base, adapter)) <= report.comparison.bound
    assert report.from_training is not None and not report.from_training.passed
    assert far(merged, logits(directory, adapter, how)) > 100 * report.comparison.bound
    facts = read_provenance(tmp_path / "merged")
    assert facts["base"]["precision"] == "full" and facts["base"]["fingerprint"] == fingerprint(base)
    assert facts["merge"]["max_abs_diff_from_training"] == report.from_training.max_abs_diff


def test_nothing_is_mixed_in_silence(base: Path, int4: Path, qlora: Path, over_int4: Path, tmp_path: Path) -> None:
    for adapter, given, formats in (
        (qlora, None, "nf4 in groups"),
        (over_int4, None, "int4"),
        (over_int4, base, "int4"),
    ):
        with pytest.raises(CheckpointError) as caught:
            merge_lora(given, adapter, tmp_path / "no")
        text = str(caught.value)
        assert f"{adapter} was trained on a base with weights in {formats}" in text
        assert "--base_precision dequantized: the weights that those stand for. The result computes what" in text
        assert f"--base_precision full: the weights before they were rounded ({base}). The result differs" in text
    with pytest.raises(CheckpointError, match=r"dequantized takes the weights of .*int4, on which .* names .*tiny"):
        merge_lora(base, over_int4, tmp_path / "no", base_precision="dequantized")
    with pytest.raises(
        ModelDirectoryError, match="int4 holds weights in int4; float weights are needed under an adapter"
    ):
        merge_lora(int4, qlora, tmp_path / "no", base_precision="full")
    assert not (tmp_path / "no").exists()


def test_plain_adapters_stay_off_quantized_bases(base: Path, int4: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        merge_lora(int4, plain, tmp_path / "no", base_precision="dequantized")
    assert f"{int4} is quantized, but the adapter {plain} was trained on the float model" in str(caught.value)
    assert f"{base}. Merge into that" in str(caught.value) and "quantize the merged model" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"neither .*tiny nor the base of .*plain is quantized. Leave it out"):
        merge_lora(None, plain, tmp_path / "no", base_precision="dequantized")


def test_rounded_activations_leave_one_choice(base: Path, plain: Path, tmp_path: Path) -> None:
    for kind in ("a8w8", "llm.int8"):
        directory = write_quantized(tmp_path / kind, base, kind)
        adapter = shutil.copytree(plain, tmp_path / f"lora-{kind}")
        facts = {"kind": "adapter", "base": base_facts(directory)}
        (adapter / "paddlesft.json").write_text(json.dumps(facts), encoding="utf-8")
        with pytest.raises(
            CheckpointError, match="dequantized: impossible here, since the base rounds activations too"
        ):
            merge_lora(None, adapter, tmp_path / "no")
        with pytest.raises(ModelDirectoryError, match="14 layers round their activations"):
            merge_lora(None, adapter, tmp_path / "no", base_precision="dequantized")
    assert merge_lora(None, adapter, tmp_path / "merged", base_precision="full").comparison.passed


def test_a_quantized_base_that_is_gone_is_named_and_floats_do_not_slip_in(base: Path, tmp_path: Path) -> None:
    gone = write_quantized(tmp_path / "gone", base, "int4")
    adapter = write_adapter(tmp_path / "lora", gone, "lora")
    assert read_provenance(adapter)["base"]["formats"] == "int4"
    shutil.rmtree(gone)
    for options in ({}, {"force": True}, {"base_precision": "full"}, {"base_precision": "dequantized", "force": True}):
        with pytest.raises(CheckpointError, match=r"trained on .*gone with weights in int4, which is not there as it"):
            merge_lora(base, adapter, tmp_path / "no", **options)
    with pytest.raises(ModelDirectoryError, match=r"trained on: .*gone with weights int4, sha256"):
        load_for_inference(base, lora_path=adapter)
    report = merge_lora(base, adapter, tmp_path / "merged", base_precision="full", force=True)
    assert report.base_check == "forced" and report.comparison.passed
    assert read_provenance(tmp_path / "merged")["base"]["trained_in"] == "int4"


def test_the_float_model_must_be_there_and_be_the_one(smollm2: Path, base: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(base, gone)
    directory = write_quantized(tmp_path / "int8", gone, "int8")
    adapter = write_adapter(tmp_path / "lora", directory, "lora")
    other = write_tiny_llama(tmp_path / "other", smollm2, seed=99)
    shutil.rmtree(gone)
    with pytest.raises(ModelDirectoryError, match=r"full needs the float model, but .*gone, from .*int8 was made"):
        merge_lora(None, adapter, tmp_path / "no", base_precision="full")
    with pytest.raises(ModelDirectoryError, match=r"other is not the model that .*int8 was made from"):
        merge_lora(other, adapter, tmp_path / "no", base_precision="full")
    report = merge_lora(base, adapter, tmp_path / "merged", base_precision="full")
    assert report.comparison.passed and report.base_check == "matches"
    assert read_provenance(tmp_path / "merged")["base"]["fingerprint"] == fingerprint(base)
