"""One quantization, from the resolved config to a model directory that every other verb loads as it is."""

from __future__ import annotations

import copy
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle import nn

from paddlesft.checkpoints.verify import RELATIVE_BOUND, logits_of, prompt_ids, release
from paddlesft.data.collate import Collator
from paddlesft.data.dataset import SFTDataset
from paddlesft.directories import new_directory, refuse_taken
from paddlesft.errors import UserError
from paddlesft.models.load import load_config, load_model, save_model_directory, without_second_names
from paddlesft.models.provenance import base_facts
from paddlesft.models.quantized.decoder_linears import decoder_layers, decoder_linears
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.quantization.calibration import Calibration, Rows, read_rows
from paddlesft.quantization.configured_recipe import configured_recipe, refuse_patterns_without_layers
from paddlesft.quantization.float_base import SPOKEN, check_base, refuse_not_finite, speak_as_trained
from paddlesft.quantization.quantize_layer import LinearResult
from paddlesft.quantization.quantize_model import layers_kept, quantize_model
from paddlesft.quantization.recipe import Recipe
from paddlesft.quantization.report import Measured, Quality, QuantReport, logit_difference
from paddlesft.quantization.sizes import peak_memory, sizes_of, stored_dtype
from paddlesft.training.evaluation import evaluate_sums, evaluation_batches, number_of_batches
from paddlesft.training.run_inputs import template_file_of
from paddlesft.training.run_renderer import RunRenderer, read_renderer
from paddlesft.training.weights_io import TextSide

if TYPE_CHECKING:
    from paddlesft.config import RunConfig

SAME = 1e-5  # share of the largest logit that a model may change by being written and loaded, in float32


class Watcher:
    """Told about a quantization; the command line shows it."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def warning(self, text: str) -> None:
        """Something the user should look at."""

    def started(self, layers: int, kept: int, work: Path) -> None:
        """Layers are about to be quantized; an earlier run has left so many of them in the working directory."""

    def layer(self, done: int, layers: int, name: str, seconds_left: float, results: list[LinearResult]) -> None:
        """A decoder layer is done."""

    def evaluating(self, what: str, done: int, batches: int) -> None:
        """A batch of held-out rows is done."""


def quantize(run_config: RunConfig, watcher: Watcher | None = None) -> QuantReport:
    """Quantize a model directory.

    Args:
        run_config: the resolved config; ``output_dir`` receives the new directory.
        watcher: told what happens.

    Returns:
        The report, which is in the directory too.

    Raises:
        UserError: config, data or model cannot be used, or the written directory does not compute what was measured.
    """
    watcher = watcher or Watcher()
    recipe = configured_recipe(run_config)
    output = Path(run_config.training.output_dir or "").expanduser()
    overwrite = run_config.training.overwrite_output_dir
    base = check_base(run_config)  # first: an output directory that is the base's must not be called replaceable
    check_output(run_config)
    speak_as_trained(run_config, base)
    rendering = read_renderer(run_config, watcher.warning)
    base, config = rendering.base, load_config(rendering.base)
    prompts = prompt_ids(rendering.tokenizer, config.vocab_size)
    calibrates = run_config.quantization.calibrates
    rows = read_rows(run_config, rendering.renderer, recipe.batches, calibrates, prompts, watcher.warning)
    _announce(rows, calibrates, config.hidden_size, watcher)

    model = load_model(base, dtype=_dtype(run_config))
    formats = _formats(model, run_config, recipe, watcher)
    refuse_not_finite(model, base)
    _refuse_full_disk(output, model, formats)
    measured = (run_config, rendering.renderer.pad_token_id, rows.held_out, watcher)
    before = Measured(_quality(model, "before", *measured), sizes_of(model, base, formats))
    logits = logits_of(model, prompts)
    facts = base_facts(base, run_config.model.model_name_or_path)

    work = output.parent / f".{output.name}.quantizing"
    identity = f"{facts['fingerprint']} {model.config.dtype} {rows.calibration.fingerprint}"
    kept = layers_kept(work, recipe, identity)
    watcher.started(len(decoder_layers(model)), kept, work)
    begin = time.perf_counter()
    results = quantize_model(model, rows.calibration.batches, recipe, work, identity, watcher.layer)
    seconds = time.perf_counter() - begin

    quality = _quality(model, "after", *measured)
    quantized_logits = logits_of(model, prompts)
    seen = _seen(rows.calibration) if calibrates else {}
    with new_directory(output, overwrite=overwrite) as scratch:
        dtype = str(model.config.dtype)
        stored = stored_dtype(base, dtype) if dtype == "float32" else dtype
        _write(scratch, model, run_config, rendering, stored, {
            "base": facts,
            "quant_type": recipe.quant_type,
            "quantization": {"method": method_of(recipe), "recipe": asdict(recipe), "calibration": seen},
        })  # fmt: skip
        after = Measured(quality, sizes_of(model, scratch, formats))
        del model
        release()
        _prove(scratch, quantized_logits, prompts, dtype)
        report = QuantReport(
            output, recipe.quant_type, method_of(recipe), before, after, *logit_difference(logits, quantized_logits),
            results, seen, rows.held_out_files, seconds, kept, peak_memory(),
        )  # fmt: skip
        report.write(scratch)
    shutil.rmtree(work, ignore_errors=True)
    return report


def after_training(run_config: RunConfig) -> RunConfig:
    """Return the config that quantizes what a config trains, into a directory beside it.

    Args:
        run_config: with do_train and a quantization; stays as it is.
    """
    made = copy.deepcopy(run_config)
    trained, kind = run_config.training.output_dir, run_config.quantization.quant_type
    made.derive("model_name_or_path", trained, "the model just trained")
    made.derive("output_dir", f"{str(trained).rstrip('/')}-{kind}", "beside the trained model")
    for key in ("do_train", "do_predict"):
        made.derive(key, False, "done")
    made.derive("tokenizer_name_or_path", None, "the trained model has it")
    made.derive("dtype", None, "the trained model's own")
    return made


def check_output(run_config: RunConfig) -> None:
    """Refuse an output directory that has content, unless it may be overwritten; for what starts hours later.

    Raises:
        UserError: as said.
    """
    training = run_config.training
    output = Path(training.output_dir or "").expanduser()
    refuse_taken(output, training.overwrite_output_dir, "overwrite_output_dir=true")


def method_of(recipe: Recipe) -> str:
    """Say a recipe's methods in words."""
    names = {"AWQ": recipe.awq, "clipping": recipe.clip, "GPTQ": recipe.gptq}
    if recipe.quant_type == "a8w8":
        names |= {"shift": recipe.shift, "smooth": recipe.smooth}
        names["piecewise search"] = recipe.smooth and recipe.search is not None
    used = [name for name, on in names.items() if on]
    return ", ".join(used if recipe.gptq else [*used, "rounding to nearest"])


def _announce(rows: Rows, calibrates: bool, hidden_size: int, watcher: Watcher) -> None:
    seen = rows.calibration
    if calibrates:
        template = "the tokenizer's own template" if seen.template == "tokenizer" else f"template {seen.template}"
        longest = max(batch["input_ids"].shape[1] for batch in seen.batches)
        held = seen.padded * (hidden_size + longest) * 4  # hidden states, and a mask for each batch
        watcher.message(
            f"calibration: {seen.rows} rows ({seen.tokens} tokens, {len(seen.batches)} batches) of "
            f"{', '.join(map(str, seen.files))} in {template}; their hidden states and masks take up to "
            f"{held / 1e6:,.0f} MB"
        )
    if rows.held_out is not None:
        watcher.message(f"held out: {len(rows.held_out)} rows of {', '.join(map(str, rows.held_out_files))}")
    else:
        watcher.warning(
            "No data is named: the report compares logits on fixed prompts. For perplexity and accuracy set "
            "eval_dataset_path."
        )


def _dtype(run_config: RunConfig) -> str | None:
    """Return the type that the weights get in memory; None: the directory's own."""
    training = run_config.training
    half = "float16" if training.fp16 else "bfloat16" if training.bf16 else None
    pure = half if training.fp16_opt_level == "O2" and not paddle.get_device().startswith("cpu") else None
    return run_config.model.dtype or pure


def _formats(model: nn.Layer, run_config: RunConfig, recipe: Recipe, watcher: Watcher) -> dict[str, WeightFormat]:
    """Return the format that each Linear will have, by its name; refuse patterns that fit none, say what others fit."""
    linears = decoder_linears(model)
    refuse_patterns_without_layers(run_config, recipe, linears)
    formats = {name: how for name in linears if (how := recipe.format_of(name)) is not None}
    counts = Counter(how.name for how in formats.values())
    left = len(linears) - len(formats)
    if left or len(counts) > 1:
        parts = [f"{count} to {name}" for name, count in counts.most_common()]
        watcher.message(f"{len(linears)} Linear layers: {', '.join(parts)}{f'; {left} stay as they are' * bool(left)}")
    if any(how.name == "int4" and not how.group_size for how in formats.values()):
        if recipe.awq and not recipe.gptq:
            watcher.warning(
                "AWQ to int4 with one scale for each output of a layer can lose more than rounding to the nearest. "
                "group_size=128 suits it; without groups do_gptq=true loses less."
            )
        elif not run_config.was_set("group_size"):
            watcher.warning(
                "int4 has one scale for each output of a layer here. group_size=64 adds about an eighth to the size of "
                "quantized layers and loses less."
            )
    return formats


def _refuse_full_disk(output: Path, model: nn.Layer, formats: Mapping[str, WeightFormat]) -> None:
    """Refuse a disk that will not hold the result and, meanwhile, the finished layers."""
    tensors = without_second_names(model)
    rest = sum(
        int(np.prod(tensor.shape)) * tensor.element_size()
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] not in formats
    )
    rounded = sum(how.nbytes(*tensors[f"{name}.weight"].shape) for name, how in formats.items())
    place = next(path for path in output.absolute().parents if path.is_dir())
    needed, free = rest + 2 * rounded, shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{place} has {free / 1e6:,.0f} MB left, and the result needs {needed / 1e6:,.0f} MB there (finished "
            "layers are kept until the end). Free some space, or choose another output_dir."
        )


def _quality(
    model: nn.Layer, what: str, run_config: RunConfig, padding: int, rows: SFTDataset | None, watcher: Watcher
) -> Quality | None:
    if rows is None:
        return None
    size = run_config.training.per_device_eval_batch_size
    batches = number_of_batches(len(rows), size, 1, -1)
    sums = evaluate_sums(
        model,
        evaluation_batches(rows, Collator(padding), size),
        on_batch=lambda done: watcher.evaluating(what, done, batches),
    )
    metrics = sums.metrics("eval")
    return Quality(metrics["eval_perplexity"], metrics["eval_accuracy"], sums.tokens, sums.rows)


def _seen(calibration: Calibration) -> dict[str, Any]:
    return {
        "files": [str(path) for path in calibration.files],
        "rows": calibration.rows,
        "tokens": calibration.tokens,
        "template": calibration.template,
        "fingerprint": calibration.fingerprint,
    }


def _write(
    scratch: Path, model: nn.Layer, run_config: RunConfig, rendering: RunRenderer, dtype: str, facts: dict[str, Any]
) -> None:
    """Write the model directory; what stays float is stored in the base's own type."""
    data = run_config.data
    text_side = TextSide(rendering.tokenizer_directory, template_file_of(data.chat_template))
    spoken = {key: getattr(data, key) for key in SPOKEN if getattr(data, key)}
    if text_side.template_file is not None:
        spoken.pop("chat_template")
    save_model_directory(
        model, rendering.tokenizer_directory, scratch, float_dtype=dtype, source="paddlesft quantize", **facts, **spoken
    )
    text_side.write_template(scratch)
    run_config.save(scratch)


def _prove(directory: Path, wanted: list[np.ndarray], prompts: list[list[int]], dtype: str) -> None:
    """Load what was written and compare its logits with those that were measured."""
    found = logits_of(load_model(directory, dtype=dtype), prompts)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(wanted, found))
    largest = max(float(np.abs(a).max()) for a in wanted)
    bound = (SAME if dtype == "float32" else RELATIVE_BOUND[dtype]) * largest
    if not difference <= bound:
        raise UserError(
            f"The quantized model, loaded again, computes other logits (largest difference {difference:.2e}, allowed "
            f"{bound:.2e}). Nothing was written. This is a fault of paddlesft: please report it with your config."
        )
    release()
