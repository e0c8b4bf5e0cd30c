"""What a training run tells whoever watches it. The command line shows it; a notebook or a test can listen too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddlesft.config import RunConfig
    from paddlesft.data.report import Span
    from paddlesft.training.resume import Difference


@dataclass(frozen=True)
class Plan:
    """What is about to happen.

    Attributes:
        method: lora, prefix or full.
        trained_parameters: parameters that are trained.
        parameters: those of the model, the adapter included.
        rows: training rows (packed rows when packing).
        steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one epoch.
        first_step: steps done already (resumed run).
        rows_per_step: rows of one optimizer step over all micro-batches and ranks.
        device: where it runs.
        ranks: processes of the run.
        layout: how they divide it, in the keys of a config.
    """

    method: str
    trained_parameters: int
    parameters: int
    rows: int
    steps: int
    steps_per_epoch: int
    first_step: int
    rows_per_step: int
    device: str
    ranks: int
    layout: str = ""


@dataclass(frozen=True)
class LogRecord:
    """One complete log line: averages since the line before.

    Attributes:
        step: optimizer steps done.
        max_steps: optimizer steps of the run.
        percent: the share of them.
        loss: cross entropy per trained token (nats).
        learning_rate: the one the last step used.
        tokens_per_second: tokens through the model, padding left out.
        trained_tokens_per_second: those of them that had a loss.
        memory_gb: resident memory of the process; the most allocated on the device when it is a GPU.
        eta_seconds: until the last step, evaluations and checkpoints left out.
        epoch: passes over the data done.
        step_seconds: time of one optimizer step.
        trained_tokens: tokens that have had a loss since step 0.
    """

    step: int
    max_steps: int
    percent: float
    loss: float
    learning_rate: float
    tokens_per_second: float
    trained_tokens_per_second: float
    memory_gb: float
    eta_seconds: float
    epoch: float
    step_seconds: float
    trained_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


class Observer:
    """Listens to a run. Every method does nothing here; override those of interest."""

    def resolved_config(self, run_config: RunConfig) -> None:
        """The config is resolved; nothing heavy has happened yet. It is saved before the first step."""

    def message(self, text: str) -> None:
        """Something worth a line: what was chosen, found or skipped."""

    def warning(self, text: str) -> None:
        """Something the user should look at."""

    def data(self, split: str, report: Any) -> None:
        """A data set is ready (``DataReport``)."""

    def first_sample(self, spans: Sequence[Span]) -> None:
        """The first training row as text, in spans that are trained or not."""

    def resumed(self, checkpoint: Path, step: int, differences: Sequence[Difference]) -> None:
        """The run goes on from a checkpoint; these are its differences from the run that wrote it."""

    def plan(self, plan: Plan) -> None:
        """Everything is built; the first step comes next."""

    def estimate(self, seconds_per_step: float, seconds: float) -> None:
        """The first steps are done: how long the whole run will take."""

    def step(self, step: int, max_steps: int, loss: float, tokens_per_second: float, eta_seconds: float) -> None:
        """An optimizer step is done (for a live progress line)."""

    def log(self, record: LogRecord) -> None:
        """A log line is due."""

    def evaluating(self, done: int, batches: int) -> None:
        """A batch of an evaluation is done (for a live progress line)."""

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation is done."""

    def checkpoint(self, path: Path) -> None:
        """A checkpoint is complete."""

    def finished(self, result: Any) -> None:
        """The run is done (``TrainResult``)."""
