"""What is done to a model: which of its Linear layers get which format, by which methods."""

from __future__ import annotations

import re
from dataclasses import dataclass

from paddlesft.models.quantized.formats import TABLES, WeightFormat
from paddlesft.models.quantized.linear import DYNAMIC, STATIC
from paddlesft.quantization.smoothing import PieceSearch

WEIGHTS = {  # quant_type -> weights' format
    "weight_only_int8": "int8",
    "weight_only_int4": "int4",
    "nf4": "nf4",
    "fp4": "fp4",
    "a8w8": "int8",
    "llm.int8": "int8",
}
ACTIVATIONS = {"a8w8": STATIC, "llm.int8": DYNAMIC}  # quant_type -> how activations get 8 bits
TABLE_GROUP = 64  # inputs that share a scale in nf4 and fp4, as QLoRA has them (arXiv:2305.14314)


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized. Numbers of steps count calibration batches.

    Attributes:
        quant_type: a key of ``WEIGHTS``; ``a8w8`` and ``llm.int8`` round activations too.
        group_size: inputs that share a scale; 0: all of an output's; None: 64 for nf4 and fp4, 0 for integers. Linear
            layers whose activations are rounded have 0 always.
        double_quantization: the scales of the weights are quantized too.
        skip: regular expressions over whole names of Linear layers that stay as they are.
        other_formats: (regular expression, format) for layers that get another format; the first that fits counts. A
            layer with nf4 or fp4 keeps its activations as they are.
        gptq: round weights by GPTQ instead of to the nearest.
        awq: search factors for weight-only formats by AWQ first.
        clip: search where to clip weights, as AWQ does.
        shift: take the middle of each input off (a8w8).
        shift_all: in front of every Linear, not only of those right behind a norm.
        shift_sampler: see ``inputs.Middle``.
        smooth: move the range of inputs into the weights (a8w8).
        smooth_all: as ``shift_all``.
        smooth_sampler: see ``inputs.Range``.
        search: search the factors piece by piece instead of by SmoothQuant's formula.
        activations: see ``inputs.ActivationScale``.
        steps: for the scale of activations.
        gptq_steps, awq_steps, clip_steps, shift_steps, smooth_steps: for each method.
    """

    quant_type: str = "a8w8"
    group_size: int | None = None
    double_quantization: bool = False
    skip: tuple[str, ...] = ()
    other_formats: tuple[tuple[str, str], ...] = ()
    gptq: bool = False
    awq: bool = False
    clip: bool = False
    shift: bool = False
    shift_all: bool = False
    shift_sampler: str = "ema"
    smooth: bool = False
    smooth_all: bool = False
    smooth_sampler: str = "none"
    search: PieceSearch | None = None
    activations: str = "avg"
    steps: int = 32
    gptq_steps: int = 8
    awq_steps: int = 8
    clip_steps: int = 8
    shift_steps: int = 32
    smooth_steps: int = 32

    @property
    def batches(self) -> int:
        """Calibration batches that are needed."""
        static = ACTIVATIONS.get(self.quant_type) == STATIC
        used = [
            (static, self.steps),
            (self.gptq, self.gptq_steps),
            (self.awq, self.awq_steps),
            (self.clip, self.clip_steps),
            (self.shift and static, self.shift_steps),
            (self.smooth and static, self.smooth_steps),
        ]
        return max((steps for on, steps in used if on), default=1)

    def format_of(self, name: str) -> WeightFormat | None:
        """Return the format that a Linear's weight gets; None where it stays as it is."""
        if any(re.fullmatch(pattern, name) for pattern in self.skip):
            return None
        fits = (other for pattern, other in self.other_formats if re.fullmatch(pattern, name))
        form = next(fits, WEIGHTS[self.quant_type])
        if form in TABLES:
            group_size = self.group_size or TABLE_GROUP
        else:
            group_size = 0 if self.quant_type in ACTIVATIONS else self.group_size or 0
        return WeightFormat(form, group_size, self.double_quantization)

    def activations_of(self, how: WeightFormat) -> str:
        """Return how the activations of a Linear with this format get 8 bits; empty where they do not."""
        return "" if how.name in TABLES else ACTIVATIONS.get(self.quant_type, "")
