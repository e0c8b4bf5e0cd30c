"""What calibration learns about the inputs of one Linear: their middle, their range, their scale, their moments.

Shape legend: i inputs of the Linear, n tokens of one row.

Every statistic is shown the rows of one calibration step at a time, without their padding. ``ActivationScale``,
``Moments`` and the range do not depend on how rows are divided into steps; the middle and the samples do, as their
samplers say.

The samplers and observers are PaddleSlim's. Its ``Shift`` and ``Smooth`` (2.6.0), which put them on a whole model, are
not used: they tell the norm of the attention from that of the feed-forward part by the parity of a global counter in
the layers' names, which holds for one model in a fresh process, and write half precision, which has no CPU kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from paddlesft.quantization.paddleslim import AbsmaxObserverLayer, AVGObserverLayer, EMASampler, MultiStepSampler

SHIFT_SAMPLERS = ("ema", "none")
SMOOTH_SAMPLERS = ("multi_step", "none")
ACTIVATION_METHODS = ("abs_max", "avg")

Rows = Sequence[paddle.Tensor]  # each [n, i]


class Middle:
    """Where the values of each input lie: what Shift takes off (arXiv:2304.09145, section 4.1).

    Args:
        sampler: ``none`` averages the middle between the smallest and the largest value of each step, the last step
            having half of the weight; ``ema`` averages the means of steps, exponentially, with PaddleSlim's sampler.
    """

    def __init__(self, sampler: str = "ema") -> None:
        self.sampler = EMASampler() if sampler == "ema" else None
        self.value: paddle.Tensor | None = None

    def add(self, rows: Rows) -> None:
        """Look at the inputs of one step."""
        x = _tokens(rows)
        if self.sampler is not None:
            self.value = self.sampler.sample(x.mean(axis=0), self.value)
            return
        middle = (x.min(axis=0) + x.max(axis=0)) / 2
        self.value = middle if self.value is None else (self.value + middle) / 2


class Range:
    """The largest magnitude of each input, and some of the inputs themselves where a search wants to try them.

    Args:
        sampler: ``multi_step`` keeps inputs of all steps, ``none`` those of the last one.
        keep: tokens that are kept of a step: the one with the largest value, and others at even distances.
    """

    def __init__(self, sampler: str = "none", keep: int = 0) -> None:
        self.sampler = MultiStepSampler() if sampler == "multi_step" else None
        self.keep = keep
        self.largest: paddle.Tensor | None = None
        self.samples: paddle.Tensor | None = None  # [1, tokens, i], as PaddleSlim's sampler joins them

    def add(self, rows: Rows) -> None:
        """Look at the inputs of one step."""
        x = _tokens(rows)
        magnitude = x.abs()
        largest = magnitude.max(axis=0)
        self.largest = largest if self.largest is None else paddle.maximum(self.largest, largest)
        if not self.keep:
            return
        loudest = int(magnitude.max(axis=1).argmax())
        even = np.linspace(0, x.shape[0] - 1, min(self.keep, x.shape[0])).astype(int)
        kept = np.union1d(even[1:], [loudest]) if loudest not in even else even
        x = paddle.gather(x, paddle.to_tensor(kept)).unsqueeze(0)
        if self.sampler is None or self.samples is None:
            self.samples = x
        else:
            self.samples = self.sampler.sample(x, self.samples)


class ActivationScale:
    """The step of 8-bit activations, found by PaddleSlim's observers.

    Args:
        method: ``abs_max``, the largest magnitude seen; ``avg``, the mean of the largest magnitude of each row.
    """

    def __init__(self, method: str = "avg") -> None:
        kind = AVGObserverLayer if method == "avg" else AbsmaxObserverLayer
        self.observer: Any = kind(None, quant_bits=8)

    def add(self, rows: Rows) -> None:
        """Look at the inputs of one step."""
        for row in rows:
            self.observer(row.astype("float32").unsqueeze(0))  # alone: a row that is padded would count its padding

    @property
    def step(self) -> float:
        """What one unit of the 8-bit activations stands for."""
        return max(float(self.observer.scales()), 1e-8) / 127


class Moments:
    """Mean and mean magnitude of each input, and mean product of each two: the Hessian of GPTQ, up to a factor."""

    def __init__(self) -> None:
        self.tokens = 0
        self._products: paddle.Tensor | None = None
        self._magnitudes: paddle.Tensor | None = None
        self._sums: paddle.Tensor | None = None

    def add(self, rows: Rows) -> None:
        """Look at the inputs of one step."""
        x = _tokens(rows)
        products, magnitudes, sums = paddle.matmul(x, x, transpose_x=True), x.abs().sum(axis=0), x.sum(axis=0)
        if self._products is None:
            self._products, self._magnitudes, self._sums = products, magnitudes, sums
        else:
            self._products.add_(products)
            self._magnitudes.add_(magnitudes)
            self._sums.add_(sums)
        self.tokens += x.shape[0]

    @property
    def hessian(self) -> paddle.Tensor:
        """The mean of x x^T, float32 [i, i]."""
        return self._products / self.tokens

    def shifted_hessian(self, shift: paddle.Tensor) -> paddle.Tensor:
        """Return the mean of (x + shift) (x + shift)^T, float32 [i, i], for a shift [i]."""
        cross = paddle.outer(self._sums / self.tokens, shift)
        return self.hessian + cross + cross.T + paddle.outer(shift, shift)

    @property
    def mean(self) -> paddle.Tensor:
        """The mean of |x|, float32 [i]."""
        return self._magnitudes / self.tokens


def _tokens(rows: Rows) -> paddle.Tensor:
    return paddle.concat(list(rows)).astype("float32")
