"""What quantization cost and saved: measured on rows that calibration has not seen, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.directories import write_json
from paddlesft.quantization.gptq import DAMPING
from paddlesft.quantization.quantize_layer import LinearResult
from paddlesft.quantization.sizes import Sizes

FILE = "quant_report.json"
WORST = 10


@dataclass
class Quality:
    """How well a model predicts held-out rows.

    Attributes:
        perplexity: exp of the mean loss of a trained token.
        accuracy: share of trained tokens that are the model's first choice.
        tokens: how many tokens that is.
        rows: how many rows they come from.
    """

    perplexity: float
    accuracy: float
    tokens: int
    rows: int


@dataclass
class Measured:
    """A model before or after.

    Attributes:
        quality: None where there are no held-out rows.
        sizes: on disk and in memory.
    """

    quality: Quality | None
    sizes: Sizes


@dataclass
class QuantReport:
    """What came out of a quantization.

    Attributes:
        output: the new directory.
        quant_type: e.g. ``weight_only_int4``.
        method: words for the methods used.
        before, after: both models.
        logit_error: |l' - l| / |l| over fixed prompts.
        same_top: share of positions of those prompts with the same first choice.
        layers: a result for each Linear.
        calibration: files, rows, tokens and fingerprint of the rows that were looked at; empty without any.
        held_out_files: what the rows come from that quality was measured on.
        seconds: time of the quantization itself.
        layers_kept: decoder layers that an earlier, interrupted run had done.
        peak_memory: the most bytes that the process has held.
    """

    output: Path
    quant_type: str
    method: str
    before: Measured
    after: Measured
    logit_error: float
    same_top: float
    layers: list[LinearResult] = field(default_factory=list)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    held_out_files: list[str] = field(default_factory=list)
    seconds: float = 0.0
    layers_kept: int = 0
    peak_memory: int = 0

    @property
    def perplexity_increase(self) -> float | None:
        """By which share the perplexity has grown (0.01 is one percent); None where there are no held-out rows."""
        if self.before.quality is None or self.after.quality is None:
            return None
        return self.after.quality.perplexity / self.before.quality.perplexity - 1

    @property
    def worst(self) -> list[LinearResult]:
        """The layers whose output has changed most, worst first."""
        return sorted(self.layers, key=lambda one: (-one.error, one.name))[:WORST]

    @property
    def damped(self) -> list[LinearResult]:
        """The layers whose Hessian was singular, so that GPTQ raised its damping; most damping first."""
        raised = [one for one in self.layers if one.damping > DAMPING]
        return sorted(raised, key=lambda one: (-one.damping, one.name))

    def exceeds(self, most: float | None) -> bool:
        """Whether the perplexity has grown by more than a share; a perplexity that is no number always has."""
        increase = self.perplexity_increase
        return most is not None and increase is not None and not increase <= most

    def write(self, directory: Path) -> None:
        """Write ``quant_report.json``; what differs from run to run stands under ``run`` alone."""
        run = {"seconds": round(self.seconds, 1), "layers_kept": self.layers_kept, "peak_memory": self.peak_memory}
        content = {key: value for key, value in asdict(self).items() if key not in ("output", *run)}
        content |= {"perplexity_increase": self.perplexity_increase, "worst": [one.name for one in self.worst]}
        content["damped"] = [one.name for one in self.damped]
        write_json(directory / FILE, {**content, "run": run})


def logit_difference(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return |l' - l| / |l| over all prompts, and the share of positions with the same first choice.

    Args:
        before: logits of the float model, [s, v] for each prompt.
        after: those of the quantized one.
    """
    lost = sum(float(np.square(b - a).sum(dtype=np.float64)) for a, b in zip(before, after))
    whole = sum(float(np.square(a).sum(dtype=np.float64)) for a in before)
    same = np.concatenate([a.argmax(axis=-1) == b.argmax(axis=-1) for a, b in zip(before, after)])
    return (lost / max(whole, 1e-30)) ** 0.5, float(same.mean())
