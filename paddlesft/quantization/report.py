"""What quantization cost and saved: measured on rows that calibration has not seen, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from paddle import nn

from paddlesft.checkpoints.verify import logits_of
from paddlesft.directories import write_json
from paddlesft.quantization.quantize_layer import LinearResult

FILE = "quant_report.json"
WORST = 10


@dataclass
class Quality:
    """How well a model predicts held-out rows.

    Attributes:
        perplexity: exp of the mean loss of a trained token.
        accuracy: share of trained tokens that are the model's first choice.
        tokens: how many tokens that is.
        disk: bytes of the directory's weights.
        memory: bytes of the model's tensors.
    """

    perplexity: float
    accuracy: float
    tokens: int
    disk: int
    memory: int


@dataclass
class QuantReport:
    """What came out of a quantization.

    Attributes:
        output: the new directory.
        quant_type: e.g. ``weight_only_int4``.
        method: words for the methods used.
        before, after: the quality of both models.
        logit_error: |l' - l| / |l| over fixed prompts.
        same_top: share of positions of those prompts with the same first choice.
        layers: a result for each Linear.
        seconds: time of the quantization itself.
        calibration_tokens: tokens that were looked at.
    """

    output: Path
    quant_type: str
    method: str
    before: Quality
    after: Quality
    logit_error: float
    same_top: float
    layers: list[LinearResult] = field(default_factory=list)
    seconds: float = 0.0
    calibration_tokens: int = 0

    @property
    def perplexity_increase(self) -> float:
        """By which share the perplexity has grown; 0.01 is one percent."""
        return self.after.perplexity / self.before.perplexity - 1

    @property
    def worst(self) -> list[LinearResult]:
        """The layers whose output has changed most, worst first."""
        return sorted(self.layers, key=lambda one: -one.error)[:WORST]

    def write(self, directory: Path) -> None:
        """Write ``quant_report.json``."""
        content = asdict(self) | {"output": str(self.output), "perplexity_increase": self.perplexity_increase}
        write_json(directory / FILE, content)


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


def prompt_logits(model: nn.Layer, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return a model's logits on the fixed prompts."""
    return logits_of(model, prompts)


def memory_of(model: nn.Layer) -> int:
    """Return the bytes of a model's tensors, shared ones counted once."""
    tensors: dict[int, Any] = {id(tensor): tensor for tensor in model.state_dict().values()}
    return sum(int(np.prod(tensor.shape)) * tensor.element_size() for tensor in tensors.values())


def disk_of(directory: Path) -> int:
    """Return the bytes of a directory's weights."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.suffix in (".safetensors", ".pdparams"))
