"""paddlesft check-data: read a data set as training would, and show what would be trained.

    paddlesft check-data data/train.jsonl
    paddlesft check-data data/ --model_name_or_path embedded:smollm2 max_length=512
    paddlesft check-data lora.json

The path is a data file, a data directory or a training config. Without a model (and its tokenizer and template) only
the rows are checked. Rows that cannot be used are listed with file and line, and the exit code is 2.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from paddlesft.cli.verb_arguments import wants_help
from paddlesft.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from paddlesft.config import RunConfig
    from paddlesft.config.data import DataConfig
    from paddlesft.data.report import DataReport, Span

SAMPLES_SHOWN = 2
MOST_CHARACTERS = 1500  # of one sample on the screen


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it: a path, then keys of the training configuration.

    Returns:
        0; errors are raised.
    """
    if not argv or wants_help(argv):
        print(f"{__doc__}\nusage: paddlesft check-data PATH [--model_name_or_path DIR] [key=value ...]\n")
        print(
            "keys: those of the data section of docs/config.md, such as max_length, truncation, chat_template, packing"
        )
        return 0 if argv else 2
    run_config = _configuration(argv)
    for notice in run_config.notices:
        print(notice, file=sys.stderr)
    from rich.console import Console

    _check(Console(), run_config)
    return 0


def _configuration(argv: list[str]) -> RunConfig:
    """The configuration, with notices about its keys."""
    from paddlesft.config import RUN_GROUPS, RunConfig, load_arguments, load_run_config
    from paddlesft.config.derived import derived_src_length

    path, overrides = argv[0], argv[1:]
    if path.startswith("-") or "=" in path:
        raise UserError(f"found {path!r} where the path of the data or of a training config belongs; put it first.")
    if Path(path).is_file() and is_training_config(Path(path)):
        return load_run_config(path, overrides)
    if not Path(path).exists():
        from paddlesft.data.sources import existing_path

        existing_path(path, "PATH")
    key = "dataset_name_or_path" if Path(path).is_dir() else "train_dataset_path"
    # not load_run_config: its rules ask for what only training needs, such as output_dir
    groups, origins, notices = load_arguments(RUN_GROUPS, overrides=[f"{key}={path}", *overrides])
    config = RunConfig(**groups, origins=origins, notices=notices)
    derived = derived_src_length(config.data)
    if derived is not None and not config.was_set("src_length"):
        config.derive("src_length", derived, "half of max_length")
    return config


def is_training_config(path: Path) -> bool:
    """Whether a file is a training config rather than data: YAML, or a JSON object with keys of the configuration."""
    if path.suffix in (".yaml", ".yml"):
        return True
    if path.suffix != ".json":
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        return False
    known = {"model_name_or_path", "dataset_name_or_path", "train_dataset_path", "output_dir", "do_train"}
    return isinstance(content, dict) and bool(known & set(content))


def _check(console: Console, run_config: RunConfig) -> None:
    from paddlesft.data.dataset import build_dataset
    from paddlesft.data.problems import counted, unread_fields
    from paddlesft.data.report import first_sample_view
    from paddlesft.data.sources import has_split
    from paddlesft.data.splits import read_split

    model, data, training = run_config.model, run_config.data, run_config.training
    renderer = None
    if model.model_name_or_path:
        from paddlesft.training.run_renderer import read_renderer

        renderer = read_renderer(run_config, lambda text: console.print(f"note: {text}", markup=False)).renderer
    splits = ["train"]
    if data.eval_split_ratio or has_split(data, "eval"):
        splits.append("eval")
    for split in splits:
        if renderer is None:
            read = read_split(data, split, training.seed)
            rows = len(read.usable())
            unread = Counter(name for conversation in read.conversations for name in conversation.unread)
            console.print(f"[bold]{split} data[/bold]: {counted(rows, 'row')}, all usable; format {read.format}")
            for line in unread_fields(unread):
                console.print(f"note: {line}", markup=False)
            continue
        dataset, report = build_dataset(data, renderer, split, training.seed)
        _print_report(console, report, data, training.per_device_train_batch_size)
        if split == "train":
            for index in range(min(SAMPLES_SHOWN, len(dataset))):
                _print_sample(console, first_sample_view(dataset, renderer, index), index)
    if renderer is None:
        console.print("To see the tokens and what is trained, name a model: --model_name_or_path DIR")


def _print_report(console: Console, report: DataReport, data: DataConfig, batch_size: int) -> None:
    from rich.table import Table

    table = Table(title=f"{report.split} data", title_justify="left", show_header=False)
    multiple_of = data.pad_to_multiple_of or 1
    for label, value in report.table(batch_size, length_grouping=data.length_grouping, multiple_of=multiple_of):
        table.add_row(label, value)
    console.print(table)
    for notice in report.notices:
        console.print(f"note: {notice}", markup=False)


def _print_sample(console: Console, spans: list[Span], index: int) -> None:
    from rich.panel import Panel
    from rich.text import Text

    from paddlesft.data.report import shortened

    plain = not console.is_terminal
    text = Text()
    trained = sum(span.tokens for span in spans if span.trained)
    total = sum(span.tokens for span in spans)
    spans = shortened(spans, MOST_CHARACTERS)
    for number, span in enumerate(spans):
        if number and span.segment != spans[number - 1].segment:
            text.append("\n--- next row of the pack ---\n", style="dim")
        marked = f"⟦{span.text}⟧" if plain and span.trained else span.text  # colours do not reach a file or a pipe
        text.append(marked, style="bold black on green" if span.trained else "")
    console.print(
        Panel(text, title=f"row {index + 1}: {trained} of {total} tokens trained (marked)", title_align="left")
    )
