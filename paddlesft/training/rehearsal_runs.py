"""Run a planned rehearsal, as one process and as ranks, and compare what both have logged."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from paddlesft.parallel.launch import launch
from paddlesft.parallel.rank_ends import RECORDS, first_failure, read_ends
from paddlesft.training.run_log import read_log

LOSSES = {"train": "loss", "eval": "eval_loss"}
COLUMNS = {"train": "train loss", "eval": "evaluation loss"}
TAIL = 1500  # characters of a log that are shown where a process has left no words
TRAIN = [sys.executable, "-m", "paddlesft", "train"]
# No card is touched. One thread each: ranks share the cores, and one process is to add up in the same order.
ON_CPU = {"CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class LossRow:
    """One loss of both runs.

    Attributes:
        step: optimizer steps done.
        what: ``"train loss"``, ``"evaluation loss"``.
        one, ranks: nats per trained token; NaN where a run has none.
    """

    step: int
    what: str
    one: float
    ranks: float

    @property
    def difference(self) -> float:
        """How far apart they are."""
        return abs(self.one - self.ranks)


@dataclass
class Outcome:
    """What came out of a rehearsal.

    Attributes:
        passed: both runs ended well and all losses agree.
        reason: why not; empty when passed.
        rows: the losses of both, in the order of the log.
        seconds: time of each run: ``one``, ``ranks``.
        logs: files that say more, by run.
    """

    passed: bool
    reason: str = ""
    rows: list[LossRow] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    logs: dict[str, list[Path]] = field(default_factory=dict)


def run_rehearsal(
    directory: Path, configs: dict[str, Path], ranks: int, tolerance: float,
    report: Callable[[str], None] = lambda text: None,
) -> Outcome:  # fmt: skip
    """Run both configs, the single process first, and compare their losses.

    Args:
        directory: of the rehearsal; receives logs.
        configs: of ``write_rehearsal``.
        ranks: processes of the divided run.
        tolerance: largest difference of two losses, in nats per token.
        report: told what begins.

    Returns:
        The outcome; a run that fails is one that has not passed.
    """
    outcome = Outcome(passed=False)
    for name, text in (("one", "one process"), ("ranks", f"{ranks} ranks")):
        report(text)
        begin = time.monotonic()
        if name == "one":
            failure, outcome.logs[name] = run_alone(configs[name], directory / "one.log")
        else:
            failure, outcome.logs[name] = run_ranks(configs[name], ranks, directory / "logs")
        outcome.seconds[name] = time.monotonic() - begin
        if failure:
            outcome.reason = f"the run of {text} failed: {failure}"
            return outcome
    outcome.rows = compare(directory / "run-one", directory / "run-ranks")
    outcome.reason = judge(outcome.rows, tolerance)
    outcome.passed = not outcome.reason
    return outcome


def run_alone(config: Path, log: Path) -> tuple[str, list[Path]]:
    """Train in one process; return the error's text, empty when it went well, and the log."""
    with tempfile.TemporaryDirectory(prefix="paddlesft-run-") as records, open(log, "wb") as out:
        launched = ("PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID", "PADDLE_TRAINER_ENDPOINTS", "PADDLE_MASTER")
        environment = {name: value for name, value in os.environ.items() if name not in launched}
        done = subprocess.run(
            [*TRAIN, str(config)], env={**environment, **ON_CPU, RECORDS: records}, stdin=subprocess.DEVNULL,
            stdout=out, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return "", [log]
        words = next((end.words for end in read_ends(Path(records)) if end.words), None)
    return (words.text if words else last_lines(log)), [log]


def run_ranks(config: Path, ranks: int, log_dir: Path) -> tuple[str, list[Path]]:
    """Train as ranks; return the error of the rank that failed first, empty when all went well, and the logs."""
    # paddle's launcher deals out cards, and fails where there are fewer than ranks: it is told of as many, which each
    # rank then does not see
    cards = ",".join(map(str, range(ranks)))
    hidden = [f"{name}={value}" for name, value in {**ON_CPU, "PADDLE_DISTRI_BACKEND": "gloo"}.items()]
    command = ["env", "-u", "FLAGS_selected_gpus", *hidden, *TRAIN, str(config)]
    launched = launch(command, ranks, log_dir, environ={"CUDA_VISIBLE_DEVICES": cards})
    if launched.code == 0:
        return "", launched.logs
    failure = first_failure(launched.ends)
    if failure is not None and failure.words is None and (failure.code or 0) > 0:
        log = launched.logs[failure.rank]
        return f"rank {failure.rank} ended with exit code {failure.code}; its log ends in\n{last_lines(log)}", [log]
    return launched.report(), launched.logs


def last_lines(log: Path) -> str:
    """Return the end of a log: the last error in it where there is one."""
    text = log.read_text(encoding="utf-8", errors="replace")
    said = text.rpartition("paddlesft train: ")[2] if "paddlesft train: " in text else text
    return said[-TAIL:].strip()


def compare(one: Path, ranks: Path) -> list[LossRow]:
    """Put the losses of two runs side by side.

    Args:
        one: output directory of the single process.
        ranks: of the ranks.

    Returns:
        A row for each loss that either has logged, in the order of the single process.
    """
    found = [
        {(record["step"], record["kind"]): float(record[LOSSES[record["kind"]]]) for record in read_log(path)}
        for path in (one, ranks)
    ]
    return [
        LossRow(step, COLUMNS[kind], *(losses.get((step, kind), math.nan) for losses in found))
        for step, kind in dict.fromkeys([*found[0], *found[1]])
    ]


def judge(rows: list[LossRow], tolerance: float) -> str:
    """Return why the losses of two runs are not the same; empty when they are."""
    if not any(row.what == COLUMNS["train"] for row in rows):
        return "no loss was logged"
    for row in rows:
        for who, loss in (("one process", row.one), ("the ranks", row.ranks)):
            if not math.isfinite(loss):
                return f"{row.what} of step {row.step}: {who} logged {'none' if math.isnan(loss) else loss}"
    worst = max(rows, key=lambda row: row.difference)
    if worst.difference <= tolerance:
        return ""
    first = next(row for row in rows if row.difference > tolerance)
    return (
        f"{first.what} of step {first.step} differs by {first.difference:.1e}, more than {tolerance:g} (largest "
        f"difference: {worst.difference:.1e})"
    )
