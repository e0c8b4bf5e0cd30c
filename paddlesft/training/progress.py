"""Speed, memory and time of a run, and the one line that says it all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import paddle
import psutil

from paddlesft.training.events import LogRecord

GIB = 2**30


def memory_gb() -> float:
    """Return the memory that matters here: the most a GPU has allocated, or this process's resident memory, in GiB."""
    if paddle.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / GIB
    return psutil.Process().memory_info().rss / GIB


def duration(seconds: float) -> str:
    """Write a duration for people: ``0:42``, ``1:02:03``, ``3d 04:05``."""
    seconds = max(0, round(seconds))
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_line(record: LogRecord) -> str:
    """Write a log record as one line."""
    width = len(str(record.max_steps))
    return (
        f"step {record.step:>{width}}/{record.max_steps} {record.percent:5.1f}%  loss {record.loss:.4f}  "
        f"lr {record.learning_rate:.2e}  {record.tokens_per_second:,.0f} tok/s "
        f"({record.trained_tokens_per_second:,.0f} trained)  {record.memory_gb:.2f} GB  "
        f"epoch {record.epoch:.2f}  ETA {duration(record.eta_seconds)}"
    )


class SpeedMeter:
    """Counts steps, tokens, loss and time; hands out the averages of a log line.

    Only the time of steps counts: evaluations and checkpoints in between do not slow the figures down.

    Args:
        max_steps: optimizer steps of the run.
        state: what ``state`` returned when the checkpoint was written that the run goes on from.
    """

    def __init__(self, max_steps: int, state: Mapping[str, Any] | None = None) -> None:
        self.max_steps = max_steps
        state = state or {}
        self.trained_tokens = state.get("trained_tokens", 0)
        self.loss_sum = state.get("loss_sum", 0.0)  # both since step 0, over all attempts
        self.steps = 0  # steps of this process
        self.seconds = 0.0
        self.tokens = 0
        self.last_step_tokens_per_second = 0.0
        self._first_step_seconds = 0.0
        self._since = _Since(**state.get("since", {}))

    def state(self) -> dict[str, Any]:
        """Return the running sums, so that the log goes on after a resume as if never stopped."""
        return {"trained_tokens": self.trained_tokens, "loss_sum": self.loss_sum, "since": asdict(self._since)}

    @property
    def mean_loss(self) -> float:
        """The loss per trained token over the whole run."""
        return self.loss_sum / max(self.trained_tokens, 1)

    def add_step(self, loss_sum: float, trained_tokens: int, tokens: int, seconds: float) -> None:
        """Count an optimizer step.

        Args:
            loss_sum: loss summed over its trained tokens.
            trained_tokens: how many those are, over all ranks.
            tokens: tokens that went through the model, over all ranks, padding left out.
            seconds: its time.
        """
        self.steps += 1
        self.seconds += seconds
        self.tokens += tokens
        if self.steps == 1:
            self._first_step_seconds = seconds
        self.trained_tokens += trained_tokens
        self.loss_sum += loss_sum
        self.last_step_tokens_per_second = tokens / max(seconds, 1e-9)
        since = self._since
        since.steps += 1
        since.loss_sum += loss_sum
        since.trained_tokens += trained_tokens
        since.tokens += tokens
        since.seconds += seconds

    @property
    def step_seconds(self) -> float:
        """The average time of a step; the first one, which warms up, is left out as soon as there are others."""
        if self.steps > 1:
            return (self.seconds - self._first_step_seconds) / (self.steps - 1)
        return self.seconds

    def eta_seconds(self, step: int) -> float:
        """Return the expected time of the steps after ``step``."""
        return (self.max_steps - step) * self.step_seconds

    @property
    def has_news(self) -> bool:
        """Whether a step was counted since the last line."""
        return self._since.steps > 0

    def line(self, step: int, learning_rate: float, epoch: float) -> LogRecord:
        """Make the record of a log line and start the averages of the next."""
        since, self._since = self._since, _Since()
        seconds = max(since.seconds, 1e-9)
        return LogRecord(
            step=step,
            max_steps=self.max_steps,
            percent=100.0 * step / max(self.max_steps, 1),
            loss=since.loss_sum / max(since.trained_tokens, 1),
            learning_rate=learning_rate,
            tokens_per_second=since.tokens / seconds,
            trained_tokens_per_second=since.trained_tokens / seconds,
            memory_gb=memory_gb(),
            eta_seconds=self.eta_seconds(step),
            epoch=epoch,
            step_seconds=since.seconds / max(since.steps, 1),
            trained_tokens=self.trained_tokens,
        )


@dataclass
class _Since:
    """Sums since the last log line."""

    steps: int = 0
    loss_sum: float = 0.0
    trained_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Stopwatch:
    """Measures one step after another."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def restart(self) -> float:
        """Return the seconds since the last restart and start again."""
        now = time.perf_counter()
        seconds, self._begin = now - self._begin, now
        return seconds
