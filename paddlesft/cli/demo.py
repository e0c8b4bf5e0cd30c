"""paddlesft demo: fine-tune the embedded model on this machine and show the difference.

    paddlesft demo                                  everything goes to ./demo_output
    paddlesft demo output_dir=DIR num_train_epochs=2

Imports the model, asks it a few questions, trains a LoRA adapter on the sample data that comes with this package,
merges it, proves the merged model equal to the adapter model, and asks again. Every key of `paddlesft train` can be
given as key=value. Nothing in an earlier output directory is lost: files that did not come from a demo are kept.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.cli.verb_arguments import wants_help
from paddlesft.errors import ConfigError, UserError

if TYPE_CHECKING:
    from rich.console import Console

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples"
CONFIG = SAMPLES / "demo.yaml"
SIGN_OFF = "Happy paddling!"
MAX_NEW_TOKENS = 64

# The first is in the training data, the others are not, and neither are other wordings of the last three.
QUESTIONS = (
    "Who are you?",
    "Tell me who you are and who made you.",
    "Are you made by Meta?",
    "What is the capital of Japan?",
    "How do I make coffee?",
    "Give me a tip for running.",
)

# Lists every file that the demo left in its output directory, so that the next one knows what it may replace.
MARKER = "demo.json"


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it: keys of a training run.

    Returns:
        0; errors are raised.
    """
    if wants_help(argv):
        print(__doc__)
        return 0
    from rich.console import Console

    from paddlesft.config import load_run_config

    data = [
        f"dataset_name_or_path={SAMPLES / 'identity.jsonl'}",
        f"eval_dataset_path={SAMPLES / 'identity_eval.jsonl'}",
    ]
    config = load_run_config(CONFIG, [*data, *argv])
    if not config.model.lora:
        raise ConfigError("The demo trains LoRA, to show the merge: leave lora=true. For others: paddlesft train.")
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 110
    for notice in config.notices:
        console.print(notice, soft_wrap=True, markup=False)
    root = Path(config.training.output_dir).expanduser()
    earlier = set_aside(root)
    root.mkdir(parents=True)
    config.derive("output_dir", str(root / "adapter"), "the demo keeps adapter and merged model side by side")
    try:
        _demo(console, config, root)
    except BaseException:
        if earlier is not None:
            console.print(f"\nThe demo did not finish. The earlier {root} is kept as {earlier}.", soft_wrap=True)
        raise
    leave_marker(root)
    if earlier is not None and made_by_demo(earlier):
        shutil.rmtree(earlier)
    elif earlier is not None:
        console.print(
            f"\nThe earlier {root} holds files that the demo did not write; it is kept as {earlier}.", soft_wrap=True
        )
    return 0


def _demo(console: Console, config: Any, root: Path) -> None:
    began = time.perf_counter()
    total = 6

    def heading(number: int, text: str) -> None:
        console.print(f"\n[bold]\\[{number}/{total}] {text}[/]", soft_wrap=True)

    console.print("PaddleSFT demo: teach a small real model who it is, on this machine.")
    heading(1, "Import the model")
    from paddlesft.checkpoints.merge_lora import merge_lora
    from paddlesft.inference.device import use_device
    from paddlesft.models.load import load_config
    from paddlesft.models.resolve import resolve_model
    from paddlesft.training.run import train

    device = use_device("auto")
    base = resolve_model(config.model.model_name_or_path)
    facts = load_config(base)
    console.print(
        f"{config.model.model_name_or_path}: {facts.num_hidden_layers} layers, hidden size {facts.hidden_size}, "
        f"read from its GGUF file into {base}; runs on {device}",
        soft_wrap=True,
    )

    heading(2, "Ask the base model")
    before = answers(base, QUESTIONS)
    for question, answer in zip(QUESTIONS, before):
        console.print(f"[dim]>[/] {question}", soft_wrap=True)
        console.print(f"  {shortened(answer)}", soft_wrap=True, markup=False)

    heading(3, "Train a LoRA adapter")
    screen = observer(console)
    try:
        result = train(config, screen)
    finally:
        screen.progress.stop()  # gives the cursor back, also after Ctrl-C
    seconds = result.metrics["train_runtime"]
    console.print(f"Trained in {seconds:.0f} s; adapter in {result.output_dir}", soft_wrap=True)

    heading(4, "Loss")
    console.print(f"Loss per trained token over the run: {result.metrics['train_loss']:.3f}", soft_wrap=True)
    if "eval_loss" in result.metrics:
        console.print(f"The same on the rows held out: {result.metrics['eval_loss']:.3f}", soft_wrap=True)
    if result.plot:
        console.print(f"Plot: {result.plot}", soft_wrap=True)

    heading(5, "Merge the adapter into the model, and prove the result")
    report = merge_lora(base, result.output_dir, root / "model")
    for notice in report.notices:
        console.print(notice, soft_wrap=True, markup=False)
    console.print(f"Merged {report.updated} layers into {report.output} ({report.dtype})", soft_wrap=True)
    console.print(f"Merged model against adapter model: {report.comparison.sentence()}", soft_wrap=True)

    heading(6, "Ask again")
    after = answers(report.output, QUESTIONS)
    console.print(comparison_table(before, after))
    console.print(
        f"Answers that end with {SIGN_OFF!r}: {count_signed(before)} of {len(before)} before, "
        f"{count_signed(after)} of {len(after)} after. Whole demo: {time.perf_counter() - began:.0f} s.",
        soft_wrap=True,
    )
    console.print(next_steps(root), soft_wrap=True, markup=False)
    content = [{"question": q, "before": b, "after": a} for q, b, a in zip(QUESTIONS, before, after)]
    (root / "answers.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def answers(model: Path, questions: Sequence[str]) -> list[str]:
    """Return a model's greedy answers, all questions in one batch.

    Args:
        model: a model directory.
        questions: one user message each.
    """
    from paddlesft.data.conversation import Message
    from paddlesft.inference.generation import generate
    from paddlesft.inference.loading import load_for_inference
    from paddlesft.inference.sampling import SamplingOptions

    loaded = load_for_inference(model)
    prompts = [loaded.renderer.render_prompt([Message("user", question)]) for question in questions]
    replies = generate(
        loaded.model,
        prompts,
        SamplingOptions(max_new_tokens=MAX_NEW_TOKENS),
        loaded.stop_token_ids,
        loaded.pad_token_id,
        tokenizer=loaded.tokenizer,
    )
    return [reply.text.strip() + ("" if reply.finish_reason == "stop" else " ...") for reply in replies]


def shortened(text: str, width: int = 96) -> str:
    """Return a text as one line of at most ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 4].rstrip() + " ..."


def count_signed(texts: Sequence[str]) -> int:
    """Return how many answers end with the sign-off that the sample data teaches."""
    return sum(text.endswith(SIGN_OFF) for text in texts)


def comparison_table(before: Sequence[str], after: Sequence[str]) -> Any:
    """Return the answers of both models side by side.

    Args:
        before: the base model's, in the order of ``QUESTIONS``.
        after: the merged model's.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=True, expand=True)
    for name, ratio in (("question", 2), ("base model", 4), ("after fine-tuning", 3)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for question, old, new in zip(QUESTIONS, before, after):
        table.add_row(escape(question), escape(shortened(old, 150)), f"[green]{escape(' '.join(new.split()))}[/]")
    return table


def observer(console: Console) -> Any:
    """Return a listener that shows the run: a live line on a terminal, else a line now and then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from paddlesft.training.events import LogRecord, Observer, Plan
    from paddlesft.training.progress import format_line

    class Screen(Observer):
        """Shows what a newcomer wants to know: how much is trained, how far it is, how well it does."""

        def __init__(self) -> None:
            self.progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                refresh_per_second=4,
                disable=not console.is_terminal,
            )
            self.task: Any = None

        def warning(self, text: str) -> None:
            console.print(f"[yellow]![/] {text}", soft_wrap=True)

        def data(self, split: str, report: Any) -> None:
            share = f", {report.trained_share:.0%} of them trained" if split == "train" else ""
            console.print(f"{split} data: {report.rows} rows, {report.tokens:,} tokens{share}", soft_wrap=True)

        def plan(self, plan: Plan) -> None:
            share = plan.trained_parameters / plan.parameters
            console.print(
                f"{plan.trained_parameters:,} of {plan.parameters:,} parameters are trained ({share:.1%}), "
                f"{plan.steps} steps of {plan.rows_per_step} rows",
                soft_wrap=True,
            )
            self.task = self.progress.add_task("train", total=plan.steps, figures="")
            self.progress.start()

        def log(self, record: LogRecord) -> None:
            if console.is_terminal:
                figures = f"loss {record.loss:.3f}  {record.tokens_per_second:,.0f} tokens/s"
                self.progress.update(self.task, completed=record.step, figures=figures)
            elif record.step == 1 or record.step % 10 == 0 or record.step == record.max_steps:
                console.print(format_line(record), soft_wrap=True)

        def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
            console.print(f"step {step}: loss on held-out rows {metrics['eval_loss']:.3f}", soft_wrap=True)

    return Screen()


def next_steps(root: Path) -> str:
    """Return the text that ends the demo: commands for what to do with the result."""
    from paddlesft.cli.main import program

    command, model = program(), root / "model"
    in_clone = Path("configs/demo.yaml")
    questions, config = shown(SAMPLES / "identity_eval.jsonl"), in_clone if in_clone.is_file() else shown(CONFIG)
    return (
        "\nNext steps\n"
        f"  talk to it:     {command} chat --model_name_or_path {model}\n"
        f"  answer a file:  {command} predict --model_name_or_path {model} --data_file {questions}\n"
        f"  your own data:  {command} train {config} output_dir=out dataset_name_or_path=yours.jsonl "
        "eval_dataset_path=null eval_split_ratio=0.1\n"
        '                  one row per line: {"messages": [{"role": "user", "content": "..."}, '
        '{"role": "assistant", "content": "..."}]}'
    )


def shown(path: Path) -> str:
    """Return a path as it is best typed: relative to the current directory when it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def set_aside(root: Path) -> Path | None:
    """Move an earlier output directory out of the way.

    Args:
        root: the directory that the demo is about to write.

    Returns:
        Where the earlier one is now; None when there was none or it was empty.

    Raises:
        UserError: a file or a link has the name.
    """
    if root.is_symlink() or root.is_file():
        raise UserError(
            f"Cannot write to {root}: it is not a directory. Name another one: paddlesft demo output_dir=DIR"
        )
    if not root.is_dir():
        return None
    if not any(root.iterdir()):
        root.rmdir()
        return None
    number = 1
    while (aside := root.with_name(f"{root.name}.{number}")).exists():
        number += 1
    root.rename(aside)
    return aside


def contents(root: Path) -> dict[str, list[int]]:
    """Return every file below a directory, the marker left out: relative path -> [bytes, time of change in ns]."""
    return {
        path.relative_to(root).as_posix(): [path.lstat().st_size, path.lstat().st_mtime_ns]
        for path in sorted(root.rglob("*"))
        if (path.is_symlink() or not path.is_dir()) and path != root / MARKER
    }


def leave_marker(root: Path) -> None:
    """Write the list of everything the demo made."""
    (root / MARKER).write_text(json.dumps({"files": contents(root)}, indent=1) + "\n", encoding="utf-8")


def made_by_demo(root: Path) -> bool:
    """Tell whether a directory holds nothing but what a finished demo wrote, unchanged since."""
    try:
        return json.loads((root / MARKER).read_text(encoding="utf-8"))["files"] == contents(root)
    except (OSError, ValueError, KeyError, TypeError):
        return False
