"""``paddlesft quantize``: turn a model directory into one that is stored in 8 or 4 bits, and measure the cost."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paddlesft.cli.verb_arguments import wants_help
from paddlesft.data.problems import counted
from paddlesft.errors import ConfigError

if TYPE_CHECKING:
    from paddlesft.config import RunConfig
    from paddlesft.quantization.report import QuantReport

USAGE = """usage: paddlesft quantize [CONFIG.yaml | CONFIG.json] [key=value | --key value | --flag] ...

Store a model in 8 or 4 bits, and measure what that costs.

  paddlesft quantize quant_type=WINT8 model_name_or_path=models/merged output_dir=models/int8
  paddlesft quantize do_gptq=true model_name_or_path=models/merged output_dir=models/int4 dataset_name_or_path=data
  paddlesft quantize quant_type=A8W8 smooth=true model_name_or_path=models/merged output_dir=models/a8w8 \\
      dataset_name_or_path=data max_ppl_increase=0.02

  weight_only_int8, weight_only_int4, nf4, fp4   weights alone, rounded to the nearest; no data needed
  do_gptq, do_awq                                weights alone (4 bits unless quant_type says otherwise), rounded such
                                                 that outputs of layers change little; needs rows like those to come
  a8w8, llm.int8                                 weights and activations; a8w8 needs rows (smooth and shift help it)

A model, a fine-tuned model or a merged one goes in; predict and chat load what comes out as it is. Rows to calibrate on
are those of quant.json in dataset_name_or_path, else training rows; quality is measured on evaluation rows, else on
rows that calibration does not see, and reported on the screen and in quant_report.json. With max_ppl_increase=0.02 the
exit code is 1 where the perplexity grows by more than 2 percent; the directory is written all the same.
A run that was interrupted goes on at its next layer when it is started again.

"""
SECONDS_BETWEEN_LINES = 30  # where nobody watches
REDRAW_SECONDS = 0.2


def help_text() -> str:
    """Return the text of ``paddlesft quantize --help``, made from the declarations of the config's keys."""
    from paddlesft.config import RUN_GROUPS
    from paddlesft.config.reference import help_text as keys

    return f"{USAGE}Keys:\n{keys({'quantization': RUN_GROUPS['quantization']})}\n" + (
        "Keys about model, data and run (model_name_or_path, dataset_name_or_path, max_length, output_dir, ...) are\n"
        "those of paddlesft train; paddlesft train --help lists them."
    )


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it: a config file and keys.

    Returns:
        0; 1 where the perplexity has grown by more than ``max_ppl_increase``.
    """
    if wants_help(argv):
        print(help_text())
        return 0
    if not argv:
        print(f"{USAGE.rstrip()}\n\npaddlesft quantize --help lists every key.", file=sys.stderr)
        return 2
    from paddlesft.config import load_run_config

    if any(word.lstrip("-").partition("=")[0] in ("nproc", "nproc_per_node") for word in argv):
        raise ConfigError("command line: --nproc: paddlesft quantize runs in one process on one device. Leave it out.")
    run_config = load_run_config(None, [*_implied(argv), *argv])  # first: behind a key without value it would be one
    if run_config.training.do_train:
        raise ConfigError(
            "do_train is true, and this verb does not train. paddlesft train with the same arguments trains and then "
            "quantizes; do_train=false quantizes model_name_or_path."
        )
    for notice in run_config.notices:
        print(notice, file=sys.stderr)
    return quantize_and_show(run_config)


def quantize_and_show(run_config: RunConfig) -> int:
    """Quantize as a config says, and show it.

    Args:
        run_config: the resolved config.

    Returns:
        The exit code, see ``run``.
    """
    from paddlesft.inference.device import use_device
    from paddlesft.quantization.run import quantize

    use_device("cpu" if run_config.training.no_cuda else run_config.training.device)
    display = _Display(live=not run_config.training.disable_tqdm)
    try:
        report = quantize(run_config, display)
    except KeyboardInterrupt:
        display.interrupted()
        raise
    finally:
        display.clear()
    return _show(display, report, run_config.quantization.max_ppl_increase)


def _implied(argv: Sequence[str]) -> list[str]:
    """Whoever calls this verb wants a quantization: do_ptq, unless the arguments say which."""
    from paddlesft.config.loader import read_arguments
    from paddlesft.config.renamed import TRAINING_OLD_KEYS
    from paddlesft.config.resolve import RUN_GROUPS

    origins = read_arguments(RUN_GROUPS, None, argv, TRAINING_OLD_KEYS).origins
    given = [key for key in ("do_ptq", "do_gptq", "do_awq") if origins[key].kind != "default"]
    return [] if given else ["do_ptq=true"]


class _Display:
    """Shows a quantization as it goes on: lines on stdout, a live line on stderr where that is a terminal."""

    def __init__(self, live: bool) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, soft_wrap=True)
        self._live = live and sys.stderr.isatty()
        self._drawn = 0.0
        self._line = ""
        self._spoken = time.perf_counter()
        self._done = self._layers = 0
        self._work: Path | None = None

    def print(self, text: object = "", **style: str) -> None:
        """Print a line; what is in brackets stays as it is."""
        self.clear()
        markup = {"markup": False} if isinstance(text, str) else {}
        self.console.print(text, **markup, **style)
        self.console.file.flush()  # a log file is read while the run goes on

    def message(self, text: str) -> None:
        """Show something worth a line."""
        self.print(text)

    def warning(self, text: str) -> None:
        """Show something to look at."""
        self.print(f"Note: {text}", style="yellow")

    def started(self, layers: int, kept: int, work: Path) -> None:
        """Say where finished layers are kept."""
        self._layers, self._work = layers, work
        done = f"{kept} of {layers} layers are done already" if kept else f"{layers} layers"
        self.print(f"{done}; finished ones are kept in {work} until the end")

    def layer(self, done: int, layers: int, name: str, seconds_left: float, results: list) -> None:
        """Show how far the run is."""
        self._done = done
        worst = max((one.error for one in results), default=0.0) ** 0.5
        text = f"layer {done}/{layers}  {name}  largest output error {worst:.2%}  {_duration(seconds_left)} left"
        self._progress(text, final=done == layers)

    def evaluating(self, what: str, done: int, batches: int) -> None:
        """Show how far the measuring is."""
        self._progress(f"measuring perplexity {what}: batch {done}/{batches}", final=done == batches)

    def interrupted(self) -> None:
        """Say how to go on."""
        if self._work is not None:
            self.clear()
            print(
                f"interrupted: {self._done} of {self._layers} layers are done and kept in {self._work}. The same "
                "command goes on there; remove that directory to forget them.",
                file=sys.stderr,
            )

    def clear(self) -> None:
        """Take the live line away."""
        if self._line:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._line = ""

    def _progress(self, text: str, final: bool) -> None:
        now = time.perf_counter()
        if self._live and (final or now - self._drawn >= REDRAW_SECONDS):
            self._drawn = now
            self._line = text[: self.console.width - 1]
            sys.stderr.write(f"\r\x1b[2K{self._line}")
            sys.stderr.flush()
        elif not self._live and now - self._spoken >= SECONDS_BETWEEN_LINES:
            self._spoken = now
            self.print(text)


def _show(display: _Display, report: QuantReport, most: float | None) -> int:
    """Print a report; return the exit code."""
    from paddlesft.quantization.gptq import DAMPING

    display.print(f"\nquantized to {report.quant_type} by {report.method} in {_duration(report.seconds)}")
    display.print(_quality_table(report))
    display.print(
        f"fixed prompts: logits differ by {report.logit_error:.2%}, the first choice is the same at "
        f"{report.same_top:.1%} of positions"
    )
    display.print()
    display.print(_size_table(report))
    display.print(f"most memory held meanwhile: {report.peak_memory / 1e6:,.0f} MB")
    display.print("\nlargest errors of a layer's output:")
    for one in report.worst[:5]:
        display.print(f"  {one.error**0.5:7.2%}  {one.name} ({one.format})")
    if report.damped:
        most_damped = report.damped[0]
        display.warning(
            f"GPTQ raised its damping for {counted(len(report.damped), 'layer')}, whose calibration inputs give a "
            f"singular Hessian (most: {most_damped.name}, from {DAMPING:g} to {most_damped.damping:g}). More and other "
            "calibration rows make it regular; quant_report.json names them all under damped."
        )
    display.print(f"\nReport: {report.output / 'quant_report.json'}")
    display.print(f"Directory: {report.output}")
    if report.exceeds(most):
        display.print(
            f"FAILED: the perplexity has grown by {report.perplexity_increase:.2%}; max_ppl_increase allows "
            f"{most:.2%}. The directory is there all the same."
        )
        return 1
    display.print(f"Next: paddlesft chat --model_name_or_path {shlex.quote(str(report.output))}")
    return 0


def _table(*heads: str) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table


def _quality_table(report: QuantReport) -> object:
    before, after = report.before.quality, report.after.quality
    if before is None or after is None:
        return "perplexity and accuracy: not measured, there is no data (eval_dataset_path names some)"
    table = _table(f"{after.tokens} tokens of {after.rows} held-out rows", "before", "after", "")
    table.add_row(
        "perplexity", f"{before.perplexity:.4f}", f"{after.perplexity:.4f}", f"{report.perplexity_increase:+.2%}"
    )
    table.add_row("token accuracy", f"{before.accuracy:.2%}", f"{after.accuracy:.2%}", "")
    return table


def _size_table(report: QuantReport) -> object:
    before, after = report.before.sizes, report.after.sizes
    table = _table("MB", "on disk", "", "in memory", "")

    def row(name: str, *pairs: tuple[int, int]) -> None:
        cells = []
        for a, b in pairs:
            cells += [f"{a / 1e6:,.1f} → {b / 1e6:,.1f}", f"{b / a:.0%}"] if a else ["-", ""]
        table.add_row(name, *cells)

    for kind in after.memory_of:
        row(
            kind,
            (before.disk_of.get(kind, 0), after.disk_of.get(kind, 0)),
            (before.memory_of.get(kind, 0), after.memory_of[kind]),
        )
    row("all", (before.disk, after.disk), (before.memory, after.memory))
    return table


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
