"""``loss.png``: train loss, raw and smoothed, and evaluation loss over the steps of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "loss.png"
SMOOTHING = 0.8  # weight of the past in the moving average, for logs of 50 lines and more


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential moving average of values, corrected for its start at zero (Adam's correction).

    Args:
        values: one value for each log line.
        weight: of the past, 0 to 1.
    """
    averages, running, mass = [], 0.0, 0.0
    for value in values:
        running = weight * running + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        averages.append(running / mass)
    return averages


def plot_losses(records: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> Path | None:
    """Draw the losses of a run.

    Args:
        records: see ``run_log.read_log``.
        path: the PNG to write; it appears complete.
        title: e.g. model and method.

    Returns:
        The path; None when there are fewer than two losses to draw.
    """
    train = [(r["step"], r["loss"]) for r in records if r.get("kind") == "train"]
    evals = [(r["step"], r["eval_loss"]) for r in records if r.get("kind") == "eval" and "eval_loss" in r]
    if len(train) < 2:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = zip(*train)
    weight = SMOOTHING if len(train) >= 50 else SMOOTHING * len(train) / 50
    axes.plot(steps, losses, color="#4C78A8", alpha=0.3, linewidth=1, label="train loss")
    axes.plot(steps, smoothed(losses, weight), color="#4C78A8", linewidth=2, label="train loss, smoothed")
    if evals:
        label = f"eval loss (lowest {min(loss for _, loss in evals):.3f})"
        axes.plot(*zip(*evals), color="#E45756", linewidth=1.5, marker="o", markersize=5, label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per trained token (nats)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    if title:
        axes.set_title(title, fontsize=11)
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    figure.savefig(beside, dpi=120, format="png")
    os.replace(beside, path)
    return path
