"""What ``paddlesft train`` shows: the resolved config, the data, the first row, progress, the summary."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddlesft.parallel.rank_terminal import RankTerminal

MAX_SAMPLE_CHARACTERS = 1500
REDRAW_SECONDS = 0.2


class TrainDisplay:
    """Shows a run on the terminal; an ``Observer``.

    Lines go to stdout. The live line goes to stderr, and only when that is a terminal and
    disable_tqdm is not set.

    Args:
        quiet: show nothing (every process of a parallel run but the first).
        terminal: where to show it instead; the live line goes there too, if a terminal it is.
    """

    def __init__(self, quiet: bool = False, terminal: RankTerminal | None = None) -> None:
        from rich.console import Console

        if terminal is None:
            self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        else:
            self.console = Console(file=terminal.stdout, width=terminal.width, highlight=False, soft_wrap=True)
        self._live_stream = terminal.stderr if terminal is not None else sys.stderr
        self._live = self._live_stream.isatty() and not quiet
        self._last_draw = 0.0
        self._drawn = False
        self._shares: dict[str, Any] = {}
        self._benchmark = False

    def __enter__(self) -> TrainDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        self._clear()

    # ---- lines ----

    def _print(self, *things: Any, **style: Any) -> None:
        self._clear()
        self.console.print(*things, **style)

    def message(self, text: str) -> None:
        """Show something worth a line."""
        self._print(text, style="cyan", markup=False)

    def warning(self, text: str) -> None:
        """Show something to look at."""
        self._print(f"! {text}", style="yellow", markup=False)

    def resolved_config(self, run_config: Any) -> None:
        """Show the keys that are not at their default, with where each value comes from."""
        training, data = run_config.training, run_config.data
        self._benchmark = training.benchmark
        self._live = self._live and not training.disable_tqdm
        self._shares = {
            "batch_size": training.per_device_train_batch_size,
            "length_grouping": data.length_grouping,
            "seed": training.seed,
            "multiple_of": data.pad_to_multiple_of or 1,
            "width": data.max_length if data.pad_to_max_length else 0,
        }
        grid = self._grid("Config", "key", "value", "from")
        rows = [row for row in run_config.table() if row[2] != "default"]
        grid.columns[0].no_wrap = True
        path = run_config.path
        for key, value, origin in rows:
            grid.add_row(key, value, origin.replace(str(path), path.name, 1) if path else origin)
        self._print(grid)
        rest = len(run_config.table()) - len(rows)
        saved = Path(training.output_dir) / "run_config.yaml"
        self._print(f"{rest} more keys have their default; all will be in {saved}\n", style="dim", markup=False)

    def data(self, split: str, report: Any) -> None:
        """Show the table about a data set."""
        grid = self._grid(f"{split.capitalize()} data", "", "")
        grid.show_header = False
        for label, value in report.table(**self._shares) if split == "train" else report.table():
            grid.add_row(label, value)
        self._print(grid)
        for notice in report.notices:
            self._print(f"note: {notice}", style="yellow", markup=False)
        self._print()

    def first_sample(self, spans: Sequence[Any]) -> None:
        """Show the first training row; what is trained is marked, with colour and in brackets."""
        from rich.text import Text

        from paddlesft.data.report import shortened

        self._print("First training row; only the [bold green]⟦marked⟧[/] text is trained", style="bold")
        text, spans = Text(), shortened(spans, MAX_SAMPLE_CHARACTERS)
        for number, span in enumerate(spans):
            if number and span.segment != spans[number - 1].segment:
                text.append("\n--- next conversation of the packed row ---\n", style="dim")
            style = "bold green" if span.trained else "dim"
            text.append(f"⟦{span.text}⟧" if span.trained else span.text, style=style)
        self._print(text)
        self._print()

    def resumed(self, checkpoint: Path, step: int, differences: Sequence[Any]) -> None:
        """Show how this run differs from the one that wrote the checkpoint."""
        if not differences:
            self.message(f"{checkpoint.name}: written by this very run; step {step} is done")
            return
        grid = self._grid(f"Differences from the run that wrote {checkpoint.name}", "", "in the checkpoint", "now", "")
        for difference in differences:
            mark = "[red]changes the result[/]" if difference.breaks else "[dim]harmless[/]"
            grid.add_row(difference.what, _plain(difference.saved), _plain(difference.now), mark)
        self._print(grid)

    def plan(self, plan: Any) -> None:
        """Show what is about to happen."""
        method = {"lora": "LoRA", "prefix": "Prefix-Tuning", "full": "full fine-tuning"}[plan.method]
        share = plan.trained_parameters / max(plan.parameters, 1)
        ranks = f" × {plan.ranks} processes: {plan.layout}" if plan.ranks > 1 else ""
        self._print(
            f"[bold]{method}[/]: {plan.trained_parameters:,} of {plan.parameters:,} parameters are trained "
            f"({share:.2%}); {plan.rows:,} rows, {plan.rows_per_step} per step, {plan.steps_per_epoch} steps per "
            f"epoch, [bold]{plan.steps} steps[/] on {plan.device}{ranks}"
        )

    def estimate(self, seconds_per_step: float, seconds: float) -> None:
        """Show how long the run will take."""
        from paddlesft.training.progress import duration

        self._print(f"about {duration(seconds)} in all ({seconds_per_step:.2f} s per step)", style="cyan", markup=False)

    def log(self, record: Any) -> None:
        """Show a log line."""
        from paddlesft.training.progress import format_line

        self._print(format_line(record), markup=False)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show an evaluation's metrics."""
        shown = {k: v for k, v in metrics.items() if not k.endswith(("_runtime", "_samples_per_second", "_tokens"))}
        seconds = next((v for k, v in metrics.items() if k.endswith("_runtime")), 0.0)
        text = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self._print(f"evaluation at step {step}  {text}  ({seconds:.1f} s)", style="magenta", markup=False)

    def checkpoint(self, path: Path) -> None:
        """Show where a checkpoint was written."""
        self._print(f"checkpoint {path}", style="dim", markup=False)

    def finished(self, result: Any) -> None:
        """Show what came out and which command comes next."""
        from paddlesft.training.progress import duration

        self._print()
        if "train_loss" not in result.metrics:
            self._print(
                f"Done in {duration(result.seconds)}. Metrics: {result.output_dir}/all_results.json", markup=False
            )
            return
        kind = {"lora": "LoRA adapter", "prefix": "prefix adapter", "full": "model"}[result.method]
        grid = self._grid(f"Done in {duration(result.seconds)}", "", "")
        grid.show_header = False
        grid.add_row(kind, str(result.output_dir))
        grid.add_row("train loss", f"{result.metrics['train_loss']:.4f} over {result.steps} steps")
        for name in ("eval_loss", "eval_perplexity", "eval_accuracy", "eval_bleu4", "eval_rougel", "test_loss"):
            if name in result.metrics:
                grid.add_row(name.replace("_", " "), f"{result.metrics[name]:.4f}")
        if result.best_checkpoint:
            grid.add_row("best checkpoint", str(result.best_checkpoint))
        if result.plot:
            grid.add_row("loss curve", str(result.plot))
        self._print(grid)
        if self._benchmark:  # the two lines that scripts of PaddleNLP's benchmarks look for
            self._print(f"Effective_Tokens_per_second: {result.metrics['train_tokens_per_second']}\nBenchmark done.")
        self._print("\nNext:", style="bold")
        for command in next_commands(result.method, result.output_dir):
            self._print(f"  {command}", markup=False)

    # ---- the live line ----

    def step(self, step: int, max_steps: int, loss: float, tokens_per_second: float, eta_seconds: float) -> None:
        """Redraw the live line after a step."""
        from paddlesft.training.progress import duration

        done = round(24 * step / max(max_steps, 1))
        bar = "█" * done + "░" * (24 - done)
        speed = f"{tokens_per_second:,.0f} tok/s"
        self._draw(
            f"{bar} {step}/{max_steps}  loss {loss:.4f}  {speed}  ETA {duration(eta_seconds)}", step == max_steps
        )

    def evaluating(self, done: int, batches: int) -> None:
        """Redraw the live line after a batch of an evaluation."""
        self._draw(f"evaluating {done}/{batches}", done == batches)

    def _draw(self, text: str, last: bool) -> None:
        now = time.monotonic()
        if not self._live or (not last and now - self._last_draw < REDRAW_SECONDS):
            return
        self._last_draw, self._drawn = now, True
        self._live_stream.write(f"\r\x1b[K{text[: self.console.width - 1]}")
        self._live_stream.flush()

    def _clear(self) -> None:
        if self._drawn:
            self._live_stream.write("\r\x1b[K")
            self._live_stream.flush()
            self._drawn = False

    def _grid(self, title: str, *columns: str) -> Any:
        from rich.table import Table

        grid = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
        )
        for column in columns:
            grid.add_column(column, overflow="fold")
        return grid


def next_commands(method: str, output_dir: Path) -> list[str]:
    """Return the commands that come after a run.

    Args:
        method: lora, prefix or full.
        output_dir: the run's directory.
    """
    place = shlex.quote(str(output_dir))
    if method == "lora":
        from paddlesft.models.quantized.origin import merge_command

        return [f"paddlesft chat --lora_path {place}", merge_command(output_dir, f"{output_dir}-merged")]
    flag = "--prefix_path" if method == "prefix" else "--model_name_or_path"
    return [f"paddlesft chat {flag} {place}", f"paddlesft predict {flag} {place} --data_file YOUR.json"]


def _plain(value: Any) -> str:
    return "—" if value is None else str(value)
