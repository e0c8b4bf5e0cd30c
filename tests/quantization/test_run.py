"""Whole quantizations of a tiny model: what is written, what it computes, what is refused, what survives a failure."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlesft.checkpoints.verify import logits_of, prompt_ids
from paddlesft.errors import ConfigError, ModelDirectoryError, UserError
from paddlesft.inference.loading import load_for_inference
from paddlesft.models.load import load_model, save_model_directory
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.weights import PADDLE_LAYOUT, NewTensor, read_weights, write_weights
from paddlesft.quantization import run as module
from paddlesft.quantization.run import Watcher, after_training, check_output, quantize
from tests.checkpoints.adapters import write_adapter
from tests.quantization.rows import quantization_config, write_rows
from tests.tiny_models import write_tiny_llama


class Seen(Watcher):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.layers: list[tuple[int, int, str]] = []
        self.start: tuple[int, int, Path] | None = None

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def started(self, layers: int, kept: int, work: Path) -> None:
        self.start = (layers, kept, work)

    def layer(self, done: int, layers: int, name: str, seconds_left: float, results: list) -> None:
        self.layers.append((done, layers, name))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_rows(path / "train.json", 12)
    write_rows(path / "dev.json", 5, start=50)
    return path


@pytest.fixture(scope="module")
def a8w8(
    tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, module.QuantReport, Seen]:
    """A run of SmoothQuant, shared by the tests that look at what it leaves."""
    output, seen = tmp_path_factory.mktemp("a8w8") / "模型", Seen()
    config = quantization_config(tiny_llama, output, "smooth=true", "ptq_step=3", "smooth_step=2", data=data)
    return output, quantize(config, seen), seen


def test_the_directory_is_complete(a8w8: tuple, tiny_llama: Path) -> None:
    output, _, _ = a8w8
    told = json.loads((output / "paddlesft.json").read_text(encoding="utf-8"))
    assert (told["kind"], told["source"], told["quant_type"]) == ("model", "paddlesft quantize", "a8w8")
    assert told["base"]["path"] == str(tiny_llama.resolve()) and told["base"]["fingerprint"].startswith("sha256:")
    assert told["quantization"]["method"] == "smooth, rounding to nearest"
    assert told["quantization"]["recipe"]["smooth_steps"] == 2
    seen = told["quantization"]["calibration"]
    assert seen["rows"] == 6 and seen["files"][0].endswith("train.json") and seen["fingerprint"].startswith("sha256:")
    for name in ("run_config.yaml", "quant_report.json", "tokenizer.json", "generation_config.json"):
        assert (output / name).is_file(), name
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name]  # no working directory is left


def test_it_loads_with_no_further_flags_and_answers(a8w8: tuple) -> None:
    loaded = load_for_inference(a8w8[0])
    assert len(quantized_layers(loaded.model)) == 14
    assert np.isfinite(logits_of(loaded.model, [[5, 6, 7]])[0]).all()


def test_the_report_measures_both_models(a8w8: tuple, tiny_llama: Path, data: Path) -> None:
    output, report, _ = a8w8
    prompts = prompt_ids(load_for_inference(tiny_llama).tokenizer, 10**9)
    before, after = (np.concatenate(logits_of(load_model(path), prompts)) for path in (tiny_llama, output))
    error = np.linalg.norm((after - before).astype(np.float64)) / np.linalg.norm(before.astype(np.float64))
    assert report.logit_error == pytest.approx(error, rel=1e-4)
    assert report.same_top == pytest.approx((before.argmax(-1) == after.argmax(-1)).mean())
    assert report.before.quality.rows == 5 and report.held_out_files[0].endswith("dev.json")
    assert report.perplexity_increase == pytest.approx(
        report.after.quality.perplexity / report.before.quality.perplexity - 1
    )
    assert report.before.quality.perplexity == pytest.approx(perplexity(tiny_llama, data), rel=1e-5)
    assert report.after.quality.perplexity == pytest.approx(perplexity(output, data), rel=1e-5)
    assert len(report.layers) == 14 and all(0 < one.error < 0.01 for one in report.layers)
    assert report.peak_memory > 100e6


def perplexity(directory: Path, data: Path) -> float:
    """The truth: row by row with numpy from logits."""
    loaded = load_for_inference(directory)
    losses = []
    config = quantization_config(directory, Path("out"), data=data)
    from paddlesft.data.dataset import build_dataset

    rows = build_dataset(config.data, loaded.renderer, "eval")[0]
    for i in range(len(rows)):
        logits = logits_of(loaded.model, [rows[i]["input_ids"]])[0].astype(np.float64)
        for line, label in zip(logits, rows[i]["labels"]):
            if label != -100:
                losses.append(np.log(np.exp(line - line.max()).sum()) + line.max() - line[label])
    return math.exp(np.mean(losses))


def test_sizes_by_kind(a8w8: tuple, tiny_llama: Path) -> None:
    output, report, _ = a8w8
    for directory, sizes in ((tiny_llama, report.before.sizes), (output, report.after.sizes)):
        tensors = read_weights(directory)[0]
        assert sizes.disk == (directory / "model.safetensors").stat().st_size
        assert sum(sizes.disk_of.values()) == sum(tensor.end - tensor.begin for tensor in tensors.values())
        assert (
            sizes.disk_of["embeddings"]
            == tensors["llama.embed_tokens.weight"].end - tensors["llama.embed_tokens.weight"].begin
        )
        assert sizes.disk_of == sizes.memory_of  # float32 on disk, float32 in memory
    assert set(report.after.sizes.disk_of) == {"quantized layers", "embeddings", "norms", "head and others"}
    floats = sum(one.bytes_before for one in report.layers)
    assert report.before.sizes.disk_of["quantized layers"] == floats
    assert report.after.sizes.disk_of["quantized layers"] == sum(one.bytes_after for one in report.layers) < floats / 3


def test_what_is_told_meanwhile(a8w8: tuple) -> None:
    output, _, seen = a8w8
    assert seen.layers == [(1, 2, "llama.layers.0"), (2, 2, "llama.layers.1")]
    assert seen.start == (2, 0, output.parent / f".{output.name}.quantizing")
    assert any(
        text.startswith("calibration: 6 rows (") and "in the tokenizer's own template" in text for text in seen.messages
    )
    assert any("hidden states and masks take up to" in text for text in seen.messages)
    assert any(text.startswith("held out: 5 rows of ") for text in seen.messages)


def test_rounding_weights_needs_no_data(tiny_llama: Path, tmp_path: Path) -> None:
    seen = Seen()
    report = quantize(quantization_config(tiny_llama, tmp_path / "int8", "quant_type=wint8"), seen)
    assert report.perplexity_increase is None and report.calibration == {} and 0 < report.logit_error < 0.05
    assert any(
        text == "No data is named: the report compares logits on fixed prompts. For perplexity and accuracy set "
        "eval_dataset_path."
        for text in seen.warnings
    )
    loaded = load_model(tmp_path / "int8")
    for name, layer in quantized_layers(loaded).items():
        weight = load_weight(tiny_llama, f"{name}.weight")
        scale = np.abs(weight).max(axis=0) / 127
        np.testing.assert_array_equal(layer.quant_weight.numpy(), np.rint(weight / scale), err_msg=name)


def load_weight(directory: Path, name: str) -> np.ndarray:
    return read_weights(directory)[0][name].load()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_stays_float_keeps_the_type_of_the_base(dtype: str, smollm2: Path, tmp_path: Path) -> None:
    half = write_tiny_llama(tmp_path / "half", smollm2)
    code = {"bfloat16": "BF16", "float16": "F16"}[dtype]
    arrays = {name: tensor.load() for name, tensor in read_weights(half)[0].items()}
    stored = {name: NewTensor(code, arrays[name].shape, partial(arrays.get, name)) for name in arrays}
    write_weights(half, stored, PADDLE_LAYOUT)
    report = quantize(quantization_config(half, tmp_path / "int8", "quant_type=wint8"))
    stored = read_weights(tmp_path / "int8")[0]
    assert stored["llama.embed_tokens.weight"].dtype == stored["lm_head.weight"].dtype == code
    assert stored["llama.norm.weight"].dtype == code
    assert json.loads((tmp_path / "int8" / "config.json").read_text(encoding="utf-8"))["dtype"] == dtype
    assert report.after.sizes.disk_of["embeddings"] == report.before.sizes.disk_of["embeddings"]
    assert report.after.sizes.disk < report.before.sizes.disk


def test_template_and_system_prompt_of_the_training_go_on(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    save_model_directory(load_model(tiny_llama), tiny_llama, tuned, chat_template="plain", system_prompt="Be brief.")
    seen = Seen()
    keys = ("gptq_step=2", "do_ptq=false", "do_gptq=true")
    quantize(quantization_config(tuned, tmp_path / "out", *keys, data=data), seen)
    told = json.loads((tmp_path / "out" / "paddlesft.json").read_text(encoding="utf-8"))
    assert (told["chat_template"], told["system_prompt"]) == ("plain", "Be brief.")
    assert any("in template plain" in text for text in seen.messages)
    assert load_for_inference(tmp_path / "out").renderer.template.name == "plain"


def test_a_template_file_goes_into_the_directory(tiny_llama: Path, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m['role'] }}]{% generation %}{{ m['content'] }}{% endgeneration %}\n{% endfor %}",
        encoding="utf-8",
    )
    config = quantization_config(tiny_llama, tmp_path / "out", "quant_type=wint8", f"chat_template={template}")
    quantize(config)
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == template.read_bytes()


# ---- what is refused ----


def refused(tmp_path: Path, model: Path, *overrides: str, error: type = UserError) -> str:
    with pytest.raises(error) as caught:
        quantize(quantization_config(model, tmp_path / "out", "quant_type=wint8", *overrides))
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_adapters_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", tiny_llama)
    text = refused(tmp_path, lora, error=ModelDirectoryError)
    assert text == (
        f"{lora} is a lora adapter, and a whole model is quantized. Merge it first: paddlesft merge-lora --lora_path "
        f"{lora} --merge_model_path {lora}_merged; then set model_name_or_path to {lora}_merged."
    )
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    (prefix / "prefix_config.json").write_text("{}", encoding="utf-8")
    assert "is a prefix adapter, and a whole model is quantized. A prefix cannot be merged" in refused(tmp_path, prefix)


def test_quantized_models_are_refused(a8w8: tuple, tmp_path: Path) -> None:
    text = refused(tmp_path, a8w8[0], error=ModelDirectoryError)
    assert "float weights are needed for quantization, because rounding twice adds both errors. Give the float" in text


def test_weights_that_are_no_numbers_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    model = load_model(tiny_llama)
    weight = model.llama.layers[1].mlp.up_proj.weight
    weight.set_value(paddle.where(paddle.arange(weight.shape[0]).unsqueeze(1) == 3, math.nan, weight))
    model.llama.norm.weight.set_value(model.llama.norm.weight * math.inf)
    save_model_directory(model, tiny_llama, broken)
    text = refused(tmp_path, broken, error=ModelDirectoryError)
    names = "llama.layers.1.mlp.up_proj.weight, llama.norm.weight"
    assert f"weights that are NaN or infinite: {names}. Such a model cannot be quantized: go back to a" in text


def test_the_base_is_never_written_to(tiny_llama: Path, tmp_path: Path) -> None:
    for output, how, overwrite in (
        (tiny_llama, "is", True), (tiny_llama, "is", False), (tiny_llama / "int8", "lies in", True),
        (tiny_llama.parent, "holds", True),
    ):  # fmt: skip
        config = quantization_config(
            tiny_llama, output, "quant_type=wint8", f"overwrite_output_dir={str(overwrite).lower()}"
        )
        with pytest.raises(ConfigError, match=rf"output_dir: {output} {how} the directory of the model that is "):
            quantize(config)
    assert (tiny_llama / "model.safetensors").is_file()


def test_an_existing_directory_is_kept_unless_it_may_go(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    keys = ("quant_type=wint8",)
    with pytest.raises(UserError, match=r"out: it is .* not empty\. .* let overwrite_output_dir=true replace this"):
        quantize(quantization_config(tiny_llama, output, *keys))
    assert (output / "notes.txt").is_file()
    quantize(quantization_config(tiny_llama, output, *keys, "overwrite_output_dir=true"))
    assert not (output / "notes.txt").exists() and (output / "quant_report.json").is_file()


def test_a_place_below_a_file_is_refused_before_the_model_is_loaded(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for output in (tmp_path / "notes.txt" / "out", tmp_path / "notes.txt" / "deeper" / "out"):
        with pytest.raises(UserError, match=rf"Cannot write to {output}: {tmp_path}/notes\.txt is a file, and a dir"):
            quantize(quantization_config(tiny_llama, output, "quant_type=wint8"))


def test_patterns_without_layers_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    text = refused(tmp_path, tiny_llama, "skip_list_names=[.*q_prj]", error=ConfigError)
    assert "skip_list_names: '.*q_prj' fits the whole name of no Linear layer. Did you mean '.*q_proj'?" in text
    text = refused(tmp_path, tiny_llama, "skip_list_names=[.*attn.*, .*mlp.*]", error=ConfigError)
    assert "skip_list_names: .*attn.*, .*mlp.* fits every Linear layer of this model; none is left to be" in text
    assert not list(tmp_path.iterdir())


def test_what_patterns_fit_is_said_before_work_starts(tiny_llama: Path, tmp_path: Path) -> None:
    seen = Seen()
    keys = ("quant_type=wint4", "skip_list_names=[.*layers.1.*]", "mixed_precision={'.*down_proj': 'int8'}")
    report = quantize(quantization_config(tiny_llama, tmp_path / "out", *keys), seen)
    assert "14 Linear layers: 6 to int4, 1 to int8; 7 stay as they are" in seen.messages
    assert sorted(one.format for one in report.layers) == ["int4"] * 6 + ["int8"]


@pytest.mark.parametrize(
    ("keys", "warned"), [((), True), (("group_size=0",), False), (("weight_quant_method=groupwise",), False)]
)
def test_four_bits_without_groups_get_a_note(
    keys: tuple[str, ...], warned: bool, tiny_llama: Path, tmp_path: Path
) -> None:
    seen = Seen()
    quantize(quantization_config(tiny_llama, tmp_path / "out", "quant_type=wint4", *keys), seen)
    assert warned == any(text.startswith("int4 has one scale for each output") for text in seen.warnings)
    assert not any("Linear layers: " in text for text in seen.messages)


@pytest.mark.parametrize(
    ("keys", "warned"),
    [(("group_size=0",), True), ((), False), (("group_size=0", "do_gptq=true"), False)],
    ids=["no groups", "its own groups", "gptq rounds"],
)
def test_awq_without_groups_is_warned_of(
    keys: tuple[str, ...], warned: bool, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    seen = Seen()
    arguments = ("quant_type=wint4", "do_ptq=false", "do_awq=true", "awq_step=1", "gptq_step=1", *keys)
    quantize(quantization_config(tiny_llama, tmp_path / "out", *arguments, data=data), seen)
    assert warned == any(
        text.startswith("AWQ to int4 with one scale for each output") and "group_size=128 suits it" in text
        for text in seen.warnings
    )
    assert not any(text.startswith("int4 has one scale") for text in seen.warnings)


def test_a_full_disk_is_found_before_work_starts(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: usage)
    text = refused(tmp_path, tiny_llama)
    assert text.startswith(f"{tmp_path} has 1 MB left, and the result needs ") and "choose another output_dir" in text


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = quantization_config(tiny_llama, tmp_path / "out", "quant_type=wint8")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(module, "save_model_directory", full)
        quantize(config)
    assert [path.name for path in tmp_path.iterdir()] == [".out.quantizing"]
    seen = Seen()
    quantize(config, seen)  # the finished layers are used
    assert seen.start[:2] == (2, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_computes_something_else_is_not_left(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_write", damaged(module._write))
    text = refused(tmp_path, tiny_llama)
    assert text.startswith("The quantized model, loaded again, computes other logits (largest difference ")


def damaged(write: Callable) -> Callable:
    def changed(scratch: Path, model: paddle.nn.Layer, *rest: object) -> None:
        layer = next(iter(quantized_layers(model).values()))
        layer.quant_scale.set_value(layer.quant_scale * 2)
        write(scratch, model, *rest)

    return changed


# ---- behind a training ----


def test_what_was_trained_is_quantized_beside_it(tmp_path: Path) -> None:
    config = quantization_config(
        "m", tmp_path / "tuned", "do_train=true", "quant_type=wint8", "tokenizer_name_or_path=t", data=tmp_path / "d"
    )
    then = after_training(config)
    assert then.model.model_name_or_path == str(tmp_path / "tuned") and then.model.tokenizer_name_or_path is None
    assert then.training.output_dir == f"{tmp_path / 'tuned'}-weight_only_int8"
    assert (then.training.do_train, config.training.do_train) == (False, True)
    check_output(then)
    (tmp_path / "tuned-weight_only_int8").mkdir()
    (tmp_path / "tuned-weight_only_int8" / "x").touch()
    with pytest.raises(UserError, match="tuned-weight_only_int8: it is a directory that is not empty"):
        check_output(then)
