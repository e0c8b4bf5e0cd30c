"""Whole runs over a quantized base: what they leave behind, what the next verb loads, what may go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints.merge_lora import merge_lora
from paddlesft.config import load_run_config
from paddlesft.data.collate import Collator
from paddlesft.data.dataset import build_dataset
from paddlesft.data.report import DataReport
from paddlesft.errors import CheckpointError, ConfigError, ModelDirectoryError
from paddlesft.inference.loading import load_for_inference
from paddlesft.models import read_provenance
from paddlesft.models.provenance import fingerprint
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.on_load import format_of_base
from paddlesft.training.evaluation import evaluate_sums, evaluation_batches
from paddlesft.training.run import TrainResult, train
from paddlesft.training.run_layout import run_layout
from paddlesft.tuning.lora import PDPARAMS, adapter_weights
from tests.tiny_quantized import write_quantized
from tests.training.small_runs import Recorder

NF4 = ("weight_quantize_algo=nf4", "weight_double_quant=true")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.json and dev.json with 8 and 3 rows."""
    path = tmp_path_factory.mktemp("data")
    for name, first, count in (("train", 0, 8), ("dev", 8, 3)):
        rows = [{"src": f"What is {i} plus one?", "tgt": f"It is {i + 1}."} for i in range(first, first + count)]
        (path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def go(out: Path, model: Path, data: Path, *overrides: str, observer: Recorder | None = None) -> TrainResult:
    keys = [f"model_name_or_path={model}", f"dataset_name_or_path={data}", f"output_dir={out}", "learning_rate=1e-2",
            "per_device_train_batch_size=4", "logging_steps=1", "max_length=64", "src_length=32", "do_train=true",
            "save_strategy=no"]  # fmt: skip
    return train(load_run_config(None, [*keys, *overrides]), observer)


class NoData(Recorder):
    """For runs that end before they read their data."""

    def data(self, split: str, report: DataReport) -> None:
        pytest.fail(f"{split} data was read")


def measured(out: Path, model: Path | None = None, **where: Path) -> float:
    """The loss on dev.json of what the inference verbs load; of an adapter over codes, or of a float model."""
    loaded = load_for_inference(model, **where)
    assert bool(quantized_layers(loaded.model)) == (model is None)
    config = load_run_config(None, [str(out / "run_config.yaml")])
    dev, _ = build_dataset(config.data, loaded.renderer, "eval")
    return evaluate_sums(loaded.model, evaluation_batches(dev, Collator(0), 8)).loss


@pytest.mark.parametrize(
    ("method", "keys"), [("lora", ()), ("prefix_tuning", ("num_prefix_tokens=4", "learning_rate=3e-2"))]
)
def test_an_adapter_says_what_its_base_was_and_loads_over_it(
    method: str, keys: tuple[str, ...], tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    told = Recorder()
    keys = (f"{method}=true", *NF4, *keys, "do_eval=true", "num_train_epochs=3")
    result = go(out, tiny_llama, data, *keys, observer=told)
    assert (
        "the base's Linear layers were quantized while they were loaded: nf4 in groups of 64 with double quantization"
    ) in told.of("message")
    provenance = read_provenance(out)
    assert format_of_base(provenance) == WeightFormat("nf4", 64, True)
    assert provenance["base_quantization"] == {
        "format": "nf4", "group_size": 64, "double_quantization": True, "scales_per_block": 256,
    }  # fmt: skip
    assert provenance["base"]["fingerprint"] == fingerprint(tiny_llama)
    where = {"lora_path" if method == "lora" else "prefix_path": out}
    assert measured(out, **where) == pytest.approx(result.metrics["eval_loss"], abs=1e-5)
    if method == "lora":
        merge_lora(None, out, tmp_path / "merged", base_precision="dequantized")
        assert measured(out, model=tmp_path / "merged") == pytest.approx(result.metrics["eval_loss"], abs=1e-4)


def test_runs_over_codes_and_over_floats_leave_the_same_files(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    for name, keys in (("quantized", NF4), ("float", ())):
        go(tmp_path / name, tiny_llama, data, "lora=true", "max_steps=1", *keys)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("quantized", "float")]
    assert files[0] == files[1]
    found, expected = (adapter_weights(tmp_path / name) for name in ("quantized", "float"))
    assert {name: array.shape for name, array in found.items()} == {n: a.shape for n, a in expected.items()}
    assert "base_quantization" not in read_provenance(tmp_path / "float")


def test_a_directory_that_was_quantized_before_is_the_base(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    base = write_quantized(tmp_path / "base", tiny_llama, "awq")
    result = go(tmp_path / "run", base, data, "lora=true", "do_eval=true", "num_train_epochs=1")
    provenance = read_provenance(tmp_path / "run")
    assert "base_quantization" not in provenance and provenance["base"]["formats"] == "int4"
    assert provenance["base"]["fingerprint"] == fingerprint(base) != fingerprint(tiny_llama)
    assert measured(tmp_path / "run", lora_path=tmp_path / "run") == pytest.approx(
        result.metrics["eval_loss"], abs=1e-5
    )
    with pytest.raises(ModelDirectoryError, match="is quantized already; it cannot be quantized to nf4 while it is"):
        go(tmp_path / "again", base, data, "lora=true", *NF4, observer=NoData())


def test_a_run_goes_on_with_the_same_base_only(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    keys = ("lora=true", "save_strategy=steps", "save_steps=2")
    run = tmp_path / "run"
    go(run, tiny_llama, data, *keys, *NF4, "max_steps=4")
    expected = adapter_weights(run)
    (run / "checkpoint-4").rename(tmp_path / "checkpoint-4")
    (run / PDPARAMS).unlink()
    with pytest.raises(CheckpointError) as caught:
        go(run, tiny_llama, data, *keys, "weight_quantize_algo=weight_only_int8", "max_steps=4")
    text = str(caught.value)
    assert "  weight_quantize_algo: 'nf4' in the checkpoint, 'weight_only_int8' now" in text
    with pytest.raises(CheckpointError, match="weight_quantize_algo: 'nf4' in the checkpoint, None now"):
        go(run, tiny_llama, data, *keys, "max_steps=4")
    result = go(run, tiny_llama, data, *keys, *NF4, "max_steps=4")
    assert result.resumed_from is not None and result.resumed_from.name == "checkpoint-2"
    for name, array in adapter_weights(run).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("keys", [("lora=true",), ()])
def test_bases_that_cannot_be_trained_over_leave_nothing_behind(
    keys: tuple[str, ...], tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    base = write_quantized(tmp_path / "base", tiny_llama, "a8w8" if keys else "int8")
    message = "round their activations" if keys else r"are quantized \(int8\); such weights cannot be trained"
    with pytest.raises(ConfigError, match=message):
        go(tmp_path / "run", base, data, *keys, observer=NoData())
    assert not (tmp_path / "run" / "run_config.yaml").exists()


def test_divided_layouts_are_refused_before_the_model_is_loaded(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    base = write_quantized(tmp_path / "base", tiny_llama, "int8")
    keys = [f"dataset_name_or_path={data}", f"output_dir={tmp_path / 'run'}", "lora=true"]
    for model, more, why in (
        (base, (), "by paddlesft quantize"),
        (tiny_llama, NF4, "weight_quantize_algo nf4"),
    ):
        config = load_run_config(None, [*keys, f"model_name_or_path={model}", "tensor_parallel_degree=2", *more])
        with pytest.raises(ConfigError, match=rf"tensor_parallel_degree: found 2; the base is quantized \({why}\)"):
            run_layout(config, Recorder())
