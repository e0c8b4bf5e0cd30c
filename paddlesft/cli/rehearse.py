"""paddlesft rehearse: run a config that is meant for many cards small, on CPU processes, and compare with one process.

    paddlesft rehearse configs/llama/sft.yaml --world_size 8 tensor_parallel_degree=4 sharding=stage1
    paddlesft rehearse sft.yaml --world_size 64 --model_config ./Llama-2-7b/config.json

The layout of the run is checked first, with the model's real sizes. Then the model is made small (random weights, same
family, same ratios) and trained for a few steps, divided as the config says, and in one process with the same global
batch. PASS: every loss and gradient norm agrees. Exit code 0 for PASS, 1 for FAIL, 2 for a layout that cannot work.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from paddlesft.config.resolve import RunConfig
    from paddlesft.training.rehearsal import Rehearsal
    from paddlesft.training.rehearsal_runs import Outcome

PROGRAM = [sys.executable, "-m", "paddlesft.cli.rehearse_rank"]
MOST_PROCESSES = 8
MEMORY_OF_A_RANK = 0.8e9  # bytes


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it: a config file, options, keys of the configuration.

    Returns:
        0 for PASS, 1 for FAIL; problems of the config or its layout are raised.
    """
    options, rest = _parse(argv)
    from paddlesft.config import load_run_config
    from paddlesft.config.derived import IF_THERE_IS_NONE
    from paddlesft.models.paddle_config import read_paddle_config
    from paddlesft.training.rehearsal import find_tokenizer, plan_rehearsal, write_rehearsal

    begin = time.monotonic()
    config = load_run_config(None, rest)
    for notice in config.notices:
        if IF_THERE_IS_NONE not in notice:  # it is about another machine
            print(notice, file=sys.stderr)
    source = _model_config(options.model_config, config)
    model_config, family = read_paddle_config(source)
    named = config.model.tokenizer_name_or_path
    tokenizer = find_tokenizer(*([named] if named else [source, config.model.model_name_or_path]))
    plan = plan_rehearsal(
        config, options.world_size, model_config, family, tokenizer, options.steps,
        options.max_processes or processes_that_fit(),
    )  # fmt: skip
    from rich.console import Console

    console = Console(stderr=options.json)
    show_plan(console, plan)
    directory = Path(tempfile.mkdtemp(prefix="paddlesft-rehearsal-"))
    with _kept_unless(directory) as removal:
        from paddlesft.training.rehearsal_runs import run_rehearsal

        configs = write_rehearsal(plan, directory)
        if options.no_resume:
            del configs["resumed"]
        outcome = run_rehearsal(
            directory, configs, plan.small.world_size, options.tolerance, PROGRAM,
            lambda text: console.print(f"running {text} ...", markup=False, highlight=False),
        )  # fmt: skip
        removal["wanted"] = outcome.passed and not options.keep
        seconds = time.monotonic() - begin
        show_outcome(console, plan, outcome, options.tolerance, seconds, None if removal["wanted"] else directory)
        if options.json:
            facts = as_json(plan, outcome, options.tolerance, seconds, None if removal["wanted"] else directory)
            print(json.dumps(facts, indent=2, ensure_ascii=False))
    return 0 if outcome.passed else 1


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="paddlesft rehearse", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="paddlesft rehearse CONFIG [--world_size N] [options] [key=value ...]",
    )  # fmt: skip
    parser.add_argument(
        "--world_size", type=int, help="processes of the run (the fewest that the config's degrees fit)"
    )
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps (6)")
    parser.add_argument("--model_config", help="config.json, or the directory that holds it, of a model on a hub")
    parser.add_argument(
        "--max_processes", type=int,
        help=f"processes to start at most ({MOST_PROCESSES}, fewer where memory is short); larger layouts are shrunk",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference of two losses, and relative of two norms (1e-4)",
    )
    parser.add_argument("--no_resume", action="store_true", help="do not resume the checkpoint that was saved half-way")
    parser.add_argument("--keep", action="store_true", help="keep configs, model, logs and results of a PASS too")
    parser.add_argument("--json", action="store_true", help="print JSON; the tables go to standard error")
    options, rest = parser.parse_known_args(argv)
    for key in ("world_size", "steps", "max_processes"):
        value = getattr(options, key)
        least = 2 if key == "steps" else 1
        if value is not None and value < least:
            raise UserError(f"--{key}: found {value}; allowed: a whole number of {least} or more.")
    if not options.tolerance > 0:
        raise UserError(f"--tolerance: found {options.tolerance:g}; allowed: a number above 0, such as 1e-4.")
    return options, rest


def _model_config(given: str | None, config: RunConfig) -> Path:
    from paddlesft.cli.layout import find_config

    return Path(given).expanduser() if given else find_config(config.model.model_name_or_path)


def processes_that_fit(memory: int | None = None) -> int:
    """Return how many ranks this machine may start: eight, or as many as free memory allows, but two.

    Args:
        memory: free bytes; measured when None, 0 for unknown.
    """
    from paddlesft.environment import memory_available

    memory = memory_available() if memory is None else memory
    return max(2, min(MOST_PROCESSES, int(memory / MEMORY_OF_A_RANK))) if memory else MOST_PROCESSES


@contextlib.contextmanager
def _kept_unless(directory: Path) -> Iterator[dict[str, bool]]:
    """Remove a directory at the end if ``wanted`` was set, or if nobody was told of it."""
    removal = {"wanted": True}
    try:
        yield removal
    finally:
        if removal["wanted"]:
            shutil.rmtree(directory, ignore_errors=True)


def show_plan(console: Console, plan: Rehearsal) -> None:
    """Print the layout, the ranks of the rehearsal, and what differs from the run."""
    from paddlesft.cli.layout import _table

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"the run:   {plan.real} ({plan.real.world_size} processes, family {plan.family.name})")
    line(f"rehearsed: {plan.small} ({plan.small.world_size} CPU processes)")
    for notice in plan.real.notices:
        line(f"note: {notice}")
    for head, texts in (("made smaller", plan.shrunk), ("set differently", plan.changed)):
        if texts:
            line(f"{head}:")
        for text in texts:
            line(f"  {text}")
    line(f"not rehearsed: {', '.join(plan.not_rehearsed)}\n")
    _table(
        console, ["rank", "place", "layers", "heads", "vocabulary", "shared state", "rows of a step"],
        [[str(r.rank), r.place, r.layers, r.heads, r.vocabulary, r.state, r.batch] for r in plan.small.table()],
    )  # fmt: skip
    line("")


def show_outcome(
    console: Console, plan: Rehearsal, outcome: Outcome, tolerance: float, seconds: float, kept: Path | None
) -> None:
    """Print the losses of both runs and the verdict."""
    from paddlesft.cli.layout import _table

    ranks = f"{plan.small.world_size} ranks"
    if outcome.rows:
        console.print()
        _table(
            console, ["step", "", "one process", ranks, "difference"],
            [[str(row.step), row.what, *(_shown(plan, row.what, n) for n in (row.one, row.ranks)),
              f"{row.difference:.1e}"] for row in outcome.rows],
        )  # fmt: skip
    names = {"one": "one process", "ranks": ranks, "resumed": "resumed"}
    times = ", ".join(f"{names[name]} {taken:.0f} s" for name, taken in outcome.seconds.items())
    verdict = "PASS" if outcome.passed else "FAIL"
    detail = outcome.reason
    if outcome.passed:
        detail = f"largest difference {max(row.difference for row in outcome.rows):.1e}, allowed {tolerance:g}"
    console.print(f"\n{verdict}: {detail}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{seconds:.0f} s in all ({times})", markup=False, highlight=False)
    if not outcome.rows:
        logs = ", ".join(str(path) for path in list(outcome.logs.values())[-1])
        console.print(f"log: {logs}", markup=False, highlight=False, soft_wrap=True)
    if kept is not None:
        console.print(f"configs, logs and results: {kept}", markup=False, highlight=False, soft_wrap=True)


def _shown(plan: Rehearsal, what: str, number: float) -> str:
    from paddlesft.training.rehearsal_runs import NORM

    limit = plan.run_config.training.max_grad_norm
    return f"<= {limit:g}" if what == NORM and number == limit else f"{number:.6f}"  # it was not clipped


def as_json(plan: Rehearsal, outcome: Outcome, tolerance: float, seconds: float, kept: Path | None) -> dict[str, Any]:
    """Return the facts that are shown, in plain values."""
    return {
        "passed": outcome.passed,
        "reason": outcome.reason,
        "tolerance": tolerance,
        "layout": dataclasses.asdict(plan.real),
        "rehearsed_layout": dataclasses.asdict(plan.small),
        "made_smaller": plan.shrunk,
        "set_differently": plan.changed,
        "not_rehearsed": plan.not_rehearsed,
        "losses": [{**dataclasses.asdict(row), "difference": row.difference} for row in outcome.rows],
        "seconds": {**{name: round(taken, 1) for name, taken in outcome.seconds.items()}, "all": round(seconds, 1)},
        "directory": str(kept) if kept is not None else None,
    }
