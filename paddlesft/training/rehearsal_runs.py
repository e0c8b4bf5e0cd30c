"""Run a planned rehearsal, as one process and as ranks, and compare what both have logged."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from paddlesft.parallel.launch import launch
from paddlesft.parallel.rank_ends import RECORDS, USER_ERROR, read_ends
from paddlesft.training.run_log import read_log

LOSSES = {"train": "loss", "eval": "eval_loss"}
COLUMNS = {"train": "train loss", "eval": "evaluation loss"}
NORM = "gradient norm"
CLIPPING = "clipping.json"  # what clipping multiplied each step's gradients by, in the output directory
UNCLIPPED = 1e-6  # so close to 1 is 1
TAIL = 1500  # characters of a log that are shown where a process has left no words
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # ranks share the cores, and one process is to add up in the same order
NO_CARD = {"CUDA_VISIBLE_DEVICES": "-1"}


@dataclass(frozen=True)
class Compared:
    """One number of both runs.

    Attributes:
        step: optimizer steps done.
        what: ``"train loss"``, ``"evaluation loss"``, ``"gradient norm"``, with ``", resumed"`` behind it for ranks
            that went on from a checkpoint.
        one, ranks: losses in nats per trained token; norms before clipping, at least ``max_grad_norm``. NaN where a run
            has none.
    """

    step: int
    what: str
    one: float
    ranks: float

    @property
    def difference(self) -> float:
        """How far apart they are; norms relative to their size."""
        apart = abs(self.one - self.ranks)
        return apart / max(abs(self.one), abs(self.ranks)) if self.what == NORM else apart


@dataclass
class Outcome:
    """What came out of a rehearsal.

    Attributes:
        passed: both runs ended well, and all losses and gradient norms agree.
        reason: why not; empty when passed.
        rows: what was compared.
        seconds: time of each run: ``one``, ``ranks``, ``resumed``.
        logs: files that say more, by run.
    """

    passed: bool
    reason: str = ""
    rows: list[Compared] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    logs: dict[str, list[Path]] = field(default_factory=dict)


def run_rehearsal(
    directory: Path, configs: dict[str, Path], ranks: int, tolerance: float, program: Sequence[str],
    report: Callable[[str], None] = lambda text: None,
) -> Outcome:  # fmt: skip
    """Run the configs, the single process first, and compare their losses and gradient norms.

    Args:
        directory: of the rehearsal; receives logs.
        configs: of ``write_rehearsal``.
        ranks: processes of the divided run.
        tolerance: largest difference of two losses, in nats per token, and of two gradient norms, relative.
        program: trains as the config behind it says, and writes ``CLIPPING`` (``record_clipping``).
        report: told what begins.

    Returns:
        The outcome; a run that fails is one that has not passed.
    """
    outcome = Outcome(passed=False)
    names = {
        "one": "one process",
        "ranks": f"{ranks} ranks",
        "resumed": f"{ranks} ranks, resumed from their checkpoint",
    }
    for name in configs:
        report(names[name])
        begin = time.monotonic()
        command = [*program, str(configs[name])]
        if name == "one":
            failure, outcome.logs[name] = run_alone(command, directory / "one.log")
        else:
            failure, outcome.logs[name] = run_ranks(command, ranks, directory / f"logs-{name}")
        outcome.seconds[name] = time.monotonic() - begin
        if failure:
            outcome.reason = f"the run of {names[name]} failed: {failure}"
            return outcome
    max_grad_norm = json.loads(configs["ranks"].read_text(encoding="utf-8")).get("max_grad_norm", 1.0)
    outcome.rows = compare(directory / "run-one", directory / "run-ranks", max_grad_norm)
    if "resumed" in configs:
        outcome.rows += compare_resumed(directory / "run-one", directory / "run-resumed")
    outcome.reason = judge(outcome.rows, tolerance)
    outcome.passed = not outcome.reason
    return outcome


def run_alone(command: Sequence[str], log: Path) -> tuple[str, list[Path]]:
    """Train in one process; return the error's text, empty when it went well, and the log."""
    with tempfile.TemporaryDirectory(prefix="paddlesft-run-") as records, open(log, "wb") as out:
        launched = ("PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID", "PADDLE_TRAINER_ENDPOINTS", "PADDLE_MASTER")
        environment = {name: value for name, value in os.environ.items() if name not in launched}
        done = subprocess.run(
            list(command), env={**environment, **ONE_THREAD, **NO_CARD, RECORDS: records}, stdin=subprocess.DEVNULL,
            stdout=out, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return "", [log]
        words = next((end.words for end in read_ends(Path(records)) if end.words), None)
    return (words.text if words else last_error(log)), [log]


def run_ranks(command: Sequence[str], ranks: int, log_dir: Path) -> tuple[str, list[Path]]:
    """Train as ranks; return the error of the rank that failed first, empty when all went well, and the logs."""
    launched = launch(command, ranks, log_dir, environ=ONE_THREAD, on_cpu=True)
    if launched.code == 0:
        return "", launched.logs
    failure = launched.failure
    if failure is None or (failure.words is None and (failure.code or 0) <= 0):  # not started, or killed
        return launched.report(), launched.logs
    log = launched.logs[failure.rank]
    if failure.words is None:
        return f"rank {failure.rank} ended with exit code {failure.code}: {last_error(log)}", [log]
    if failure.words.kind == USER_ERROR:
        return failure.words.text, [log]
    return f"rank {failure.rank} failed first: {failure.words.text}", [log]


def last_error(log: Path) -> str:
    """Return the last error that a log ends in, without its traceback, or the end of the log."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    if "Traceback (most recent call last)" in text:
        return text.splitlines()[-1]
    return text.rpartition("paddlesft train: ")[2][-TAIL:]


def compare(one: Path, ranks: Path, max_grad_norm: float) -> list[Compared]:
    """Put what two runs have logged side by side.

    Args:
        one: output directory of the single process.
        ranks: of the ranks.
        max_grad_norm: to which gradients were clipped; 0 for never.

    Returns:
        A row for each loss that either has logged, and for each gradient norm that was clipped.
    """
    found = [
        {(record["kind"], record["step"]): float(record[LOSSES[record["kind"]]]) for record in read_log(path)}
        for path in (one, ranks)
    ]
    for losses, path in zip(found, (one, ranks)):
        losses |= {(NORM, step): norm for step, norm in gradient_norms(path, max_grad_norm).items()}
    known = dict.fromkeys([*found[0], *found[1]])
    order = [("train", COLUMNS["train"]), (NORM, NORM), ("eval", COLUMNS["eval"])]
    return [
        Compared(step, what, *(losses.get((kind, step), math.nan) for losses in found))
        for wanted, what in order
        for kind, step in known
        if kind == wanted and not (kind == NORM and all(n.get((kind, step)) == max_grad_norm for n in found))
    ]


def compare_resumed(one: Path, resumed: Path) -> list[Compared]:
    """Put the losses of a run that was resumed beside those of one that was not; see ``compare``."""
    later = [row for row in compare(one, resumed, 0.0) if not math.isnan(row.ranks)]
    return [replace(row, what=f"{row.what}, resumed") for row in later] or [
        Compared(0, f"{COLUMNS['train']}, resumed", math.nan, math.nan)
    ]


def gradient_norms(output_dir: Path, max_grad_norm: float) -> dict[int, float]:
    """Return the norm of each step's gradients before clipping, ``max_grad_norm`` where it was that or less."""
    path = output_dir / CLIPPING
    factors = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and max_grad_norm > 0 else []
    return {
        step: max_grad_norm if factor > 1 - UNCLIPPED else max_grad_norm / factor
        for step, factor in enumerate(factors, 1)
        if not math.isnan(factor)
    }


def judge(rows: list[Compared], tolerance: float) -> str:
    """Return why two runs are not the same; empty when they are."""
    if not any(row.what == COLUMNS["train"] for row in rows):
        return "no loss was logged"
    for row in rows:
        for who, number in (("one process", row.one), ("the ranks", row.ranks)):
            if not math.isfinite(number):
                return f"{row.what} of step {row.step}: found {number} in the log of {who}"
    worst = max(rows, key=lambda row: row.difference)
    if worst.difference <= tolerance:
        return ""
    first = next(row for row in rows if row.difference > tolerance)
    return (
        f"{first.what} of step {first.step} differs by {first.difference:.1e}, more than {tolerance:g} (largest "
        f"difference: {worst.difference:.1e})"
    )
