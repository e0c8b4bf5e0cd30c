"""One quantization, from the resolved config to a model directory that every other verb loads as it is."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle import nn

from paddlesft.checkpoints.verify import prompt_ids
from paddlesft.data.collate import Collator
from paddlesft.data.dataset import SFTDataset, build_dataset
from paddlesft.data.sources import has_split
from paddlesft.directories import new_directory
from paddlesft.errors import ConfigError, UserError
from paddlesft.models.load import load_model, save_model_directory
from paddlesft.models.provenance import base_facts
from paddlesft.models.quantized.formats import INTEGERS
from paddlesft.quantization.calibration import calibration_batches
from paddlesft.quantization.quantize_layer import LinearResult
from paddlesft.quantization.quantize_model import quantize_model
from paddlesft.quantization.recipe import Recipe
from paddlesft.quantization.report import Quality, QuantReport, disk_of, logit_difference, memory_of, prompt_logits
from paddlesft.quantization.smoothing import PieceSearch
from paddlesft.training.evaluation import evaluate_sums, evaluation_batches
from paddlesft.training.run_renderer import RunRenderer, read_renderer

if TYPE_CHECKING:
    from paddlesft.config import RunConfig

HELD_OUT_ROWS = 64
GROUP = 128  # of weight_quant_method: groupwise, as in PaddleSlim


class Watcher:
    """Told about a quantization; the command line shows it."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def warning(self, text: str) -> None:
        """Something the user should look at."""

    def layer(self, done: int, layers: int, name: str, seconds_left: float, results: list[LinearResult]) -> None:
        """A decoder layer is done."""

    def evaluating(self, what: str, done: int) -> None:
        """A batch of held-out rows is done."""


def recipe_of(run_config: RunConfig) -> Recipe:
    """Read the recipe out of a config.

    Raises:
        ConfigError: it asks for no quantization, or for more than one kind, or for what does not go together.
    """
    config = run_config.quantization
    asked = [key for key in ("do_ptq", "do_gptq", "do_awq") if getattr(config, key)]
    if not asked:
        raise ConfigError("Nothing to quantize by: set do_ptq, do_gptq or do_awq to true.")
    if config.do_ptq and len(asked) > 1:
        raise ConfigError(
            f"{' and '.join(asked)} are all true. do_gptq and do_awq may go together, do_ptq stands alone."
        )
    quant_type = config.quant_type
    if not config.do_ptq and not run_config.was_set("quant_type"):
        quant_type = "weight_only_int4"
    if not config.do_ptq and not quant_type.startswith("weight_only"):
        raise ConfigError(f"quant_type: found {quant_type}; {asked[0]} rounds weights only: weight_only_int4 or _int8.")
    if quant_type not in ("a8w8", "weight_only_int8", "weight_only_int4"):
        raise ConfigError(
            f"quant_type: found {quant_type}; this version quantizes to a8w8, weight_only_int8 and weight_only_int4."
        )
    mixed = config.mixed_precision or {}
    for key, patterns in (("skip_list_names", config.skip_list_names), ("mixed_precision", mixed)):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{key}: {pattern!r} is not a regular expression ({error}).") from error
    for pattern, form in mixed.items():
        if form not in INTEGERS:
            raise ConfigError(f"mixed_precision: found {form!r} for {pattern!r}; allowed: {', '.join(INTEGERS)}.")
    search = None
    if config.smooth_piecewise_search:
        search = PieceSearch(
            config.smooth_k_piece,
            config.smooth_search_piece,
            config.search_alpha_min,
            config.search_alpha_max,
            config.search_scale_min,
            config.search_scale_max,
        )
    return Recipe(
        quant_type=quant_type,
        group_size=GROUP if config.weight_quant_method == "groupwise" else 0,
        skip=tuple(config.skip_list_names),
        other_formats=tuple((config.mixed_precision or {}).items()),
        gptq=config.do_gptq,
        awq=config.do_awq,
        shift=config.shift,
        shift_all=config.shift_all_linears,
        shift_sampler=config.shift_sampler,
        smooth=config.smooth,
        smooth_all=config.smooth_all_linears,
        smooth_sampler=config.smooth_sampler,
        search=search,
        activations=config.act_quant_method,
        steps=config.ptq_step,
        gptq_steps=config.gptq_step,
        awq_steps=config.awq_step,
        shift_steps=config.shift_step,
        smooth_steps=config.smooth_step,
    )


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
    recipe = recipe_of(run_config)
    output = Path(run_config.training.output_dir or "").expanduser()
    rendering = read_renderer(run_config, watcher.warning)
    batches, rows = calibration_batches(run_config, rendering.renderer, recipe.batches, watcher.warning)
    held_out = held_out_rows(run_config, rendering, watcher)
    model = load_model(rendering.base, dtype=run_config.model.dtype)
    prompts = prompt_ids(rendering.tokenizer, model.config.vocab_size)
    before, logits = (
        quality_of(model, held_out, run_config, rendering, watcher, "before"),
        prompt_logits(model, prompts),
    )
    before.disk = disk_of(rendering.base)
    facts = base_facts(rendering.base, run_config.model.model_name_or_path)
    work = output.parent / f".{output.name}.quantizing"
    with new_directory(output, overwrite=run_config.training.overwrite_output_dir) as scratch:
        begin = time.perf_counter()
        results = quantize_model(model, batches, recipe, work, f"{facts['fingerprint']} {rows}", watcher.layer)
        seconds = time.perf_counter() - begin
        after = quality_of(model, held_out, run_config, rendering, watcher, "after")
        now = prompt_logits(model, prompts)
        error, same = logit_difference(logits, now)
        save_model_directory(
            model, rendering.tokenizer_directory, scratch, source="paddlesft quantize", base=facts,
            quant_type=recipe.quant_type,
        )  # fmt: skip
        _prove(scratch, now, prompts)
        after.disk = disk_of(scratch)
        tokens = sum(int(np.asarray(batch["attention_mask"]).sum()) for batch in batches[: recipe.batches])
        report = QuantReport(
            output, recipe.quant_type, method_of(recipe), before, after, error, same, results, seconds, tokens
        )
        report.write(scratch)
    shutil.rmtree(work, ignore_errors=True)
    return report


def method_of(recipe: Recipe) -> str:
    """Say a recipe's methods in words."""
    names = [("awq", recipe.awq), ("gptq", recipe.gptq), ("shift", recipe.shift), ("smooth", recipe.smooth)]
    used = [name for name, on in names if on]
    if recipe.smooth and recipe.search is not None:
        used.append("piecewise search")
    return ", ".join(used) or "rounding to nearest"


def held_out_rows(run_config: RunConfig, rendering: RunRenderer, watcher: Watcher) -> SFTDataset:
    """Return rows to measure on: the evaluation or test split, or else the last rows of the training data."""
    data = run_config.data
    for split in ("eval", "test"):
        if has_split(data, split):
            return build_dataset(data, rendering.renderer, split, run_config.training.seed)[0]
    watcher.warning(
        "There is no evaluation data: quality is measured on rows of the training data, some of which calibration may "
        "see. Set eval_dataset_path for an honest figure."
    )
    return build_dataset(data, rendering.renderer, "train", run_config.training.seed)[0]


def quality_of(
    model: nn.Layer, rows: Any, run_config: RunConfig, rendering: RunRenderer, watcher: Watcher, what: str
) -> Quality:
    """Measure a model on held-out rows."""
    size = run_config.training.per_device_eval_batch_size
    limit = -(-HELD_OUT_ROWS // size) if run_config.data.max_eval_samples is None else -1
    collator = Collator(rendering.renderer.pad_token_id)
    sums = evaluate_sums(
        model, evaluation_batches(rows, collator, size), limit, on_batch=lambda done: watcher.evaluating(what, done)
    )
    metrics = sums.metrics("eval")
    return Quality(metrics["eval_perplexity"], metrics["eval_accuracy"], sums.tokens, 0, memory_of(model))


def _prove(directory: Path, wanted: list[np.ndarray], prompts: list[list[int]]) -> None:
    """Load what was written and compare its logits with those that were measured."""
    loaded = load_model(directory)
    found = prompt_logits(loaded, prompts)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(wanted, found))
    largest = max(float(np.abs(a).max()) for a in wanted)
    if not difference <= 1e-5 * largest:
        raise UserError(
            f"The quantized model, loaded again, computes other logits (largest difference {difference:.2e}). Nothing "
            "was written. This is a fault of paddlesft: please report it with your config."
        )
    del loaded
    paddle.device.cuda.empty_cache() if paddle.is_compiled_with_cuda() else None
