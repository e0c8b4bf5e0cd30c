"""Quantized directories and adapters over quantized bases reply with no further flags; nothing else is mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints.verify import logits_of
from paddlesft.errors import ModelDirectoryError
from paddlesft.inference.generation import generate
from paddlesft.inference.loading import Loaded, load_for_inference
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models import load_model
from paddlesft.models.fast import accelerate
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.on_load import entry_of_base
from paddlesft.tuning.lora import load_lora
from tests.inference.adapters import write_adapter
from tests.tiny_models import write_tiny_llama
from tests.tiny_quantized import write_quantized

GREEDY = SamplingOptions(max_new_tokens=6)
PROMPTS = [[5, 6, 7, 8], list(range(100, 130))]
NF4 = WeightFormat("nf4", 16, True)
FORMATS = {
    "int8": "int8", "nf4": "nf4 in groups of 16", "a8w8": "int8 with activations", "llm.int8": "int8 with activations",
}  # fmt: skip

ADAPTERS = {"int8": ["lora", "prefix"], "nf4": ["lora"], "a8w8": ["prefix"], "llm.int8": []}


@pytest.fixture(scope="module")
def base(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny", smollm2, initializer_range=0.2)


@pytest.fixture(scope="module")
def int4(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("int4") / "int4", base, "int4")


@pytest.fixture(scope="module")
def over_int4(int4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("a") / "over_int4", int4, "lora")


@pytest.fixture(scope="module", params=["lora", "prefix"])
def qlora(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the float model, quantized while it was loaded."""
    path = tmp_path_factory.mktemp("a") / f"qlora-{request.param}"
    return write_adapter(path, base, request.param, base_quantization=entry_of_base(NF4))


def replies(loaded: Loaded, *sizes: int) -> list[list[int]]:
    """Replies to ragged prompts, in batches of these sizes."""
    texts = ("Hi", "What is the capital of France, please?", "a b c d e f")
    prompts = [loaded.renderer.render_prompt([{"role": "user", "content": text}]) for text in texts]
    found: list[list[int]] = []
    for size in sizes:
        batch = prompts[len(found) : len(found) + size]
        found += [one.token_ids for one in generate(loaded.model, batch, GREEDY, [], loaded.pad_token_id)]
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_batches_reply_as_single_rows(kind: str, base: Path, tmp_path: Path) -> None:
    directory = write_quantized(tmp_path / kind, base, kind)
    adapters = [write_adapter(tmp_path / one, directory, one) for one in ADAPTERS[kind]]
    plain = replies(load_for_inference(directory), 3)
    for model in (directory, *adapters):
        loaded = load_for_inference(model)
        assert loaded.directory == directory and loaded.base.formats.startswith(FORMATS[kind])
        batch = replies(loaded, 3)
        assert batch == replies(loaded, 1, 1, 1)
        assert (batch == plain) == (model == directory)


def test_fast_layers_change_nothing(int4: Path, over_int4: Path) -> None:
    for model in (load_model(int4), load_lora(load_model(int4), over_int4)):
        slow = logits_of(model, PROMPTS)
        assert "LlamaAttention" in accelerate(model)
        for ours, theirs in zip(logits_of(model, PROMPTS), slow):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_base_is_loaded_as_training_had_it(base: Path, qlora: Path) -> None:
    loaded, full = load_for_inference(qlora), load_for_inference(qlora, base_precision="full")
    assert loaded.base.how == NF4 and full.base.how is None and loaded.directory == full.directory == base
    said = "weights rounded to nf4 in groups of 16 with double quantization while loading, as in training"
    assert loaded.base.said == said and "full precision; the adapter's training had nf4" in full.base.said
    assert loaded.identity() != full.identity()  # so that predict does not go on with the other's replies
    if loaded.adapter_kind == "lora":
        wanted = logits_of(load_lora(load_model(base, quantize=NF4), qlora), PROMPTS)
        floats = logits_of(load_lora(load_model(base), qlora), PROMPTS)
        for ours, same, other in zip(logits_of(loaded.model, PROMPTS), wanted, floats):
            np.testing.assert_array_equal(ours, same)
            assert np.abs(ours - other).max() > 0.1
        for ours, other in zip(logits_of(full.model, PROMPTS), floats):
            np.testing.assert_array_equal(ours, other)
    assert replies(loaded, 3) == replies(loaded, 1, 1, 1)


def test_adapters_of_quantized_directories(base: Path, int4: Path, over_int4: Path) -> None:
    assert load_for_inference(over_int4).base.said == "weights in int4"
    with pytest.raises(ModelDirectoryError) as caught:
        load_for_inference(base, lora_path=over_int4)
    assert f"{over_int4} was trained on {int4} with weights in int4; {base} has floats." in str(caught.value)
    assert "or add --base_precision full" in str(caught.value)
    for given in (None, base, int4):
        full = load_for_inference(given, lora_path=over_int4, base_precision="full")
        assert full.directory == base.resolve() and not full.base.formats and "had int4" in full.base.said


def test_floats_and_codes_are_not_mixed(base: Path, int4: Path, tmp_path: Path) -> None:
    plain = write_adapter(tmp_path / "plain", base, "lora")
    qlora = write_adapter(tmp_path / "qlora", base, "lora", base_quantization=entry_of_base(NF4))
    for arguments, message in (
        (dict(model=int4, lora_path=plain), f"{int4} is quantized, but {plain} was trained on the float model that it"),
        (
            dict(model=int4, lora_path=qlora),
            f"float weights are needed under {qlora}, whose training rounded them to nf4",
        ),
        (
            dict(model=int4, base_precision="full"),
            f"in int4 only. Name the float model instead: --model_name_or_path {base}",
        ),
        (dict(model=base, base_precision="quantized"), "holds float weights and no adapter says that they are rounded"),
        (dict(model=plain, base_precision="quantized"), "quantize the model first: paddlesft quantize CONFIG"),
    ):
        with pytest.raises(ModelDirectoryError) as caught:
            load_for_inference(**arguments)
        assert message in str(caught.value)
    entry = {**json.loads((qlora / "paddlesft.json").read_text()), "base_quantization": {"format": "int3"}}
    (qlora / "paddlesft.json").write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match=r"paddlesft.json: base_quantization is damaged"):
        load_for_inference(qlora)


def test_commands(run_here: Callable, base: Path, int4: Path, over_int4: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    common = ["--output_file", output, "--max_samples", 1, "--max_new_tokens", 3, "--top_k", 1, "--device", "cpu"]
    done = run_here("predict", "--model_name_or_path", int4, "--quant_type", "weight_only_int4", *common)
    assert done.returncode == 0 and f"Model: {int4} (weights in int4), float32 on cpu" in done.stdout
    assert f"Note: quant_type weight_only_int4 changes nothing: {int4} holds weights in int4." in done.stdout
    done = run_here("predict", "--lora_path", over_int4, "--base_precision", "full", "--overwrite", *common)
    assert done.returncode == 0, done.stderr
    assert "(weights in full precision; the adapter's training had int4) with lora adapter" in done.stdout
    done = run_here("predict", "--model_name_or_path", base, "--quant_type", "weight_only_int8", *common)
    assert done.returncode == 2 and "and predict quantizes nothing. Quantize it once (paddlesft quantize" in done.stderr
    done = run_here(
        "merge-lora", "--lora_path", over_int4, "--merge_model_path", tmp_path / "merged", "--device", "cpu"
    )
    assert done.returncode == 2 and "--base_precision dequantized:" in done.stderr
    done = run_here(
        "merge-lora", "--lora_path", over_int4, "--merge_model_path", tmp_path / "merged", "--base_precision", "full"
    )
    assert done.returncode == 0 and "in full precision; the adapter was trained over int4" in done.stdout
    assert "training computed with other weights: largest logit difference to it" in done.stdout
    done = run_here("dequantize", int4, tmp_path / "floats")
    assert done.returncode == 0 and "Dequantized 14 layers in" in done.stdout and "(int4)" in done.stdout


def test_damaged_directories_compute_nothing(int4: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(int4 / "model.safetensors")
    name = "llama.layers.1.mlp.up_proj"

    def change(**entries: object) -> Path:
        target = tmp_path / "damaged"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(int4, target)
        kept = {key: entries.get(key.rpartition(".")[2], value) for key, value in weights.items()}
        kept = {key: value for key, value in kept.items() if value is not None}
        if "quant_config" in entries:
            path = target / "config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            config["quantization_config"] |= entries["quant_config"]
            path.write_text(json.dumps(config), encoding="utf-8")
        save_file(kept, target / "model.safetensors", metadata={"format": "np"})
        return target

    wrong = {"kinds": [{"format": "int3"}]}
    for target, message in (
        (lambda: change(quant_scale=None), "lacks 14 of "),
        (lambda: change(quant_weight=None), "lacks 14 of "),
        (lambda: change(quant_weight=weights[f"{name}.quant_weight"][:-1].copy()), " instead of "),
        (lambda: change(quant_config=wrong), "weight format 'int3' is not one of"),
        (lambda: change(quant_config={"kinds": [{"format": "int4", "colour": 1}]}), "is damaged"),
        (lambda: change(quant_config={"version": 99}), "has version 99; this version of paddlesft reads"),
        (lambda: change(quant_config={"quant_method": "awq"}), "was quantized by 'awq', which is not read here"),
    ):
        with pytest.raises(ModelDirectoryError) as caught:
            load_for_inference(target())
        assert message in str(caught.value)
    target = change()
    whole = (target / "model.safetensors").read_bytes()
    (target / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelDirectoryError, match="is truncated"):
        load_for_inference(target)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_directories_of_other_methods_are_refused_by_name(method: str, base: Path, tmp_path: Path) -> None:
    """As users bring them from Hugging Face: config in its layout, weights marked as torch's."""
    from paddlesft.models import write_hugging_face

    write_hugging_face(base, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"quantization_config": {"quant_method": method, "bits": 4}}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        ModelDirectoryError, match=rf"weights are quantised \({method}\); only float weights .* original"
    ):
        load_for_inference(tmp_path / "hf")
