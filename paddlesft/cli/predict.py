"""paddlesft predict: answer the rows of a data file.

    paddlesft predict --model_name_or_path DIR --data_file dev.json --output_file output.json --batch_size 8

DIR holds a model, or a static graph that paddlesft export wrote. Each row becomes one JSON line {"src", "tgt",
"output"}, written as it comes. The same command continues a run that was stopped. Without --data_file two sample
questions are asked.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.cli.verb_arguments import read_arguments, show_help, wants_help
from paddlesft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from paddlesft.config.verbs import PredictConfig
    from paddlesft.inference.loading import Loaded
    from paddlesft.inference.throughput import Throughput

SECONDS_BETWEEN_LINES = 10.0  # of progress when the output is not a terminal


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.verbs import PredictConfig

    if wants_help(argv):
        return show_help(__doc__, "predict", PredictConfig)
    config = read_arguments("predict", PredictConfig, argv)
    if config.data_file is not None and not Path(config.data_file).is_file():
        raise DataError(f"data_file: {config.data_file} is not a file. Leave it out to ask two sample questions.")
    check_output(config)
    return _predict(config)


def check_output(config: PredictConfig) -> None:
    """Refuse output files that are the input, each other or no files at all, before a model is loaded.

    Raises:
        ConfigError: naming both.
        UserError: a file stands where a directory is needed.
    """
    from paddlesft.directories import refuse_below_file

    taken = {} if config.data_file is None else {Path(config.data_file).resolve(): "data_file"}
    for key in ("output_file", "speed_file"):
        name = getattr(config, key)
        if name is None:
            continue
        path = Path(name)
        if path.is_dir():
            raise ConfigError(f"{key}: {path} is a directory. Give the name of a file.")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{key}: {path} is a device or a pipe. Give the name of a file.")
        refuse_below_file(path)
        other = taken.setdefault(path.resolve(), key)
        if other == "data_file":
            raise ConfigError(f"{key}: {path} is the data_file itself. Inputs are never changed: name another.")
        if other != key:
            raise ConfigError(f"{key}: {path} is the {other} itself. Name another.")


def about_quant_type(quant_type: str, directory: Path, formats: str) -> str:
    """Say what the key of PaddleNLP's predictor changes.

    Args:
        quant_type: its value.
        directory: of the model.
        formats: of its weights, in words; empty for floats.

    Raises:
        ConfigError: the weights are floats.
    """
    if not formats:
        raise ConfigError(
            f"quant_type: found {quant_type}, but {directory} holds float weights, and predict quantizes nothing. "
            "Quantize it once (paddlesft quantize CONFIG) and give the new directory; quant_type is not needed then."
        )
    return f"quant_type {quant_type} changes nothing: {directory} holds weights in {formats}."


def _predict(config: PredictConfig) -> int:
    from rich.console import Console

    from paddlesft.inference.device import use_device
    from paddlesft.inference.fused_kernels import about_fused_kernels
    from paddlesft.inference.loading import load_for_inference
    from paddlesft.inference.prediction import (
        DEFAULT_PROMPTS,
        benchmark,
        predict_file,
        read_rows,
        rows_of_prompts,
    )
    from paddlesft.inference.sampling import SamplingOptions

    console = Console(highlight=False, soft_wrap=True)
    options = SamplingOptions.from_config(config)
    if config.data_file is None:
        rows = rows_of_prompts(DEFAULT_PROMPTS[: config.max_samples])
    else:
        rows = read_rows(config.data_file, config.column_map, config.max_samples)
    device = use_device(config.device)
    loaded = load_for_inference(
        config.model_name_or_path,
        config.lora_path,
        config.prefix_path,
        config.dtype,
        config.chat_template,
        config.system_prompt,
        config.base_precision,
        config.mode,
    )
    if config.inference_model:
        console.print(about_fused_kernels(device), markup=False)
    if config.quant_type is not None:
        console.print(
            f"Note: {about_quant_type(config.quant_type, loaded.directory, loaded.base.formats)}", markup=False
        )
    adapter = f" with {loaded.adapter_kind} adapter {loaded.adapter}" if loaded.adapter else ""
    stored = f" ({loaded.base.said})" if loaded.base.said else ""
    console.print(f"Model: {loaded.directory}{stored}{adapter}, {loaded.model.config.dtype} on {device}", markup=False)
    console.print(f"Rows: {len(rows)} from {config.data_file or 'the sample questions'}", markup=False)
    how = "greedy"
    if options.do_sample:
        how = f"sampling with temperature {options.temperature}, top_p {options.top_p}, top_k {options.top_k}"
        how += f", seed {options.seed}"
    console.print(f"Generation: {how}, up to {options.max_new_tokens} new tokens, batches of {config.batch_size}")
    if config.benchmark:
        batch = rows[: config.batch_size]
        console.print(
            f"Benchmark: the first batch ({len(batch)} rows), every reply {options.max_new_tokens} tokens ..."
        )
        measured = benchmark(loaded, batch, options, config.src_length)
        console.print(f"IPS: {measured.tokens_per_second:.1f} tokens/s, QPS: {measured.requests_per_second:.3f}")
        _report_speed(console, config, loaded, device, measured)
        return 0
    progress = _Progress(console, len(rows), show_replies=config.data_file is None)
    with progress:
        report = predict_file(
            loaded,
            rows,
            config.output_file,
            options,
            config.batch_size,
            config.src_length,
            config.overwrite,
            progress.reply,
        )
    if report.repaired:
        console.print("The last line of the earlier run was incomplete; its row was answered again.")
    if report.kept:
        console.print(f"{report.kept} of {report.rows} replies were there already and were kept.")
    if report.throughput.replies:
        _report_speed(console, config, loaded, device, report.throughput)
        ended = report.finish_reasons["length"] - report.context_full
        if ended:
            console.print(f"Unfinished after {options.max_new_tokens} tokens (max_new_tokens): {ended}")
        if report.context_full:
            console.print(f"Unfinished at the model's context of {loaded.context_length} tokens: {report.context_full}")
    console.print(f"Replies: {config.output_file}", markup=False)
    return 0


def _report_speed(console: Any, config: PredictConfig, loaded: Loaded, device: str, measured: Throughput) -> None:
    """Print how fast replies came, and write it where it is wanted."""
    from paddlesft.directories import write_json

    console.print(str(measured))
    console.print(measured.latency())
    if config.speed_file is None:
        return
    graph = loaded.identity().get("graph")
    run = {
        "model": str(loaded.directory), "adapter": None if loaded.adapter is None else str(loaded.adapter),
        "graph": graph, "formats": loaded.base.formats, "dtype": str(loaded.model.config.dtype), "device": device,
        "batch_size": config.batch_size, "benchmark": config.benchmark,
    }  # fmt: skip
    path = Path(config.speed_file)
    write_json(path, {**run, **measured.facts()})
    console.print(f"Speed: {path}", markup=False)


class _Progress:
    """A bar on a terminal, a line now and then elsewhere, whole replies where there are only a few."""

    def __init__(self, console: Any, rows: int, show_replies: bool) -> None:
        self._console = console
        self._rows = rows
        self._show_replies = show_replies
        self._start = self._last_line = time.monotonic()
        self._tokens = 0
        self._bar = self._task = None
        if console.is_terminal and not show_replies:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self._task = self._bar.add_task("predict", total=rows, rate="")

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def reply(self, index: int, row: Any, reply: Any) -> None:
        """Show that a row was answered."""
        self._tokens += reply.num_tokens
        now = time.monotonic()
        rate = f"{self._tokens / max(now - self._start, 1e-9):.1f} tokens/s"
        if self._show_replies:
            for title, text in (("Source", row.src), ("Target", row.tgt), ("Output", reply.text)):
                self._console.print(f"***{title}***\n{text}", markup=False)
        elif self._bar is not None:
            self._bar.update(self._task, completed=index + 1, rate=rate)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES or index + 1 == self._rows:
            self._last_line = now
            self._console.print(f"{index + 1}/{self._rows} rows, {rate}")
