"""paddlesft quantize: turn a model directory into one whose layers are stored in 8 or 4 bits, and measure the cost.

    paddlesft quantize configs/llama/gptq.yaml model_name_or_path=models/merged output_dir=models/int4
    paddlesft quantize do_ptq=true quant_type=weight_only_int8 model_name_or_path=DIR output_dir=DIR \
        dataset_name_or_path=data

do_ptq quantizes to quant_type (a8w8, weight_only_int8, weight_only_int4), do_gptq and do_awq to weight_only_int4.
The new directory is loaded by predict and chat as it is. --max_ppl_increase 0.02 makes the exit code 1 where the
perplexity of held-out rows grows by more than two percent; the directory is kept all the same.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from paddlesft.cli.verb_arguments import wants_help

if TYPE_CHECKING:
    from rich.console import Console

    from paddlesft.quantization.report import QuantReport


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it: a config file and keys.

    Returns:
        0; 1 where the perplexity has grown by more than ``max_ppl_increase``.
    """
    if wants_help(argv) or not argv:
        from paddlesft.config.quantization import QuantizationConfig
        from paddlesft.config.reference import help_text

        print(__doc__ + "\nKeys, besides those about model and data of paddlesft train:\n")
        print(help_text({"quantization": QuantizationConfig}))
        return 0 if argv else 2
    from paddlesft.config import load_run_config

    run_config = load_run_config(None, argv)
    for notice in run_config.notices:
        print(notice, file=sys.stderr)
    from rich.console import Console

    from paddlesft.inference.device import use_device
    from paddlesft.quantization.run import quantize

    use_device(run_config.training.device)
    console = Console(highlight=False, soft_wrap=True)
    report = quantize(run_config, _Display(console))
    show(console, report)
    limit = run_config.quantization.max_ppl_increase
    if limit is not None and report.perplexity_increase > limit:
        console.print(
            f"max_ppl_increase: the perplexity has grown by {report.perplexity_increase:.2%}, allowed are {limit:.2%}."
        )
        return 1
    return 0


class _Display:
    """Shows a quantization as it goes on."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def message(self, text: str) -> None:
        self.console.print(text, markup=False)

    def warning(self, text: str) -> None:
        self.console.print(f"Note: {text}", markup=False)

    def layer(self, done: int, layers: int, name: str, seconds_left: float, results: list) -> None:
        worst = max((one.error for one in results), default=0.0)
        self.console.print(
            f"layer {done}/{layers}  {name}  worst output error {worst**0.5:.2%}  {_minutes(seconds_left)} left",
            markup=False,
        )

    def evaluating(self, what: str, done: int) -> None:
        """Silent: it takes seconds."""


def show(console: Console, report: QuantReport) -> None:
    """Print a report."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("", "before", "after", ""):
        table.add_column(head, justify="left" if head == "" else "right")
    before, after = report.before, report.after
    table.add_row(
        "perplexity", f"{before.perplexity:.4f}", f"{after.perplexity:.4f}", f"{report.perplexity_increase:+.2%}"
    )
    table.add_row("token accuracy", f"{before.accuracy:.2%}", f"{after.accuracy:.2%}", "")
    for name, a, b in (("on disk", before.disk, after.disk), ("in memory", before.memory, after.memory)):
        table.add_row(name, f"{a / 1e6:,.1f} MB", f"{b / 1e6:,.1f} MB", f"{b / max(a, 1):.0%}")
    console.print(f"\nquantized to {report.quant_type} by {report.method} in {_minutes(report.seconds)}", markup=False)
    console.print(table)
    console.print(
        f"{after.tokens} held-out tokens; logits of fixed prompts differ by {report.logit_error:.2%}, the first choice "
        f"is the same at {report.same_top:.1%} of positions"
    )
    console.print("\nlargest errors of a layer's output:")
    for one in report.worst[:5]:
        console.print(f"  {one.error**0.5:7.2%}  {one.name} ({one.format})", markup=False)
    console.print(f"Directory: {report.output}", markup=False)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
