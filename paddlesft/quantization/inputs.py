"""What calibration learns about the inputs of one Linear: their middle, their range, their scale.

Shape legend: i inputs of the Linear, n tokens of one calibration step.

The samplers and observers are PaddleSlim's. Its ``Shift`` and ``Smooth`` (2.6.0), which put them on a whole model, are
not used: they tell the norm of the attention from that of the feed-forward part by the parity of a global counter in
the layers' names, which holds for one model in a fresh process, and write half precision, which has no CPU kernels.
"""

from __future__ import annotations

from typing import Any

import paddle

from paddlesft.quantization.paddleslim import AbsmaxObserverLayer, AVGObserverLayer, EMASampler, MultiStepSampler

SHIFT_SAMPLERS = ("ema", "none")
SMOOTH_SAMPLERS = ("multi_step", "none")
ACTIVATION_METHODS = ("abs_max", "avg")


class Middle:
    """Where the values of each input lie: what Shift takes off (arXiv:2304.09145, section 4.1).

    Args:
        sampler: ``none`` averages the middle between the smallest and the largest value of each step, the last step
            having half of the weight; ``ema`` averages the means of steps, exponentially, with PaddleSlim's sampler.
    """

    def __init__(self, sampler: str = "ema") -> None:
        self.sampler = EMASampler() if sampler == "ema" else None
        self.value: paddle.Tensor | None = None

    def add(self, x: paddle.Tensor) -> None:
        """Look at the inputs of one step, [..., i]."""
        x = _rows(x)
        if self.sampler is not None:
            mean = x.mean(axis=0)
            self.value = self.sampler.sample(mean, self.value)
            return
        middle = (x.min(axis=0) + x.max(axis=0)) / 2
        self.value = middle if self.value is None else (self.value + middle) / 2


class Range:
    """The largest magnitude of each input, and the inputs themselves where a search wants to try them.

    Args:
        sampler: ``multi_step`` keeps the inputs of all steps, ``none`` those of the last one.
        keep: keep inputs at all.
    """

    def __init__(self, sampler: str = "none", keep: bool = False) -> None:
        self.sampler = MultiStepSampler() if sampler == "multi_step" else None
        self.keep = keep
        self.largest: paddle.Tensor | None = None
        self.samples: paddle.Tensor | None = None  # [1, n, i], as PaddleSlim's sampler joins them

    def add(self, x: paddle.Tensor) -> None:
        """Look at the inputs of one step, [..., i]."""
        x = _rows(x)
        largest = x.abs().max(axis=0)
        self.largest = largest if self.largest is None else paddle.maximum(self.largest, largest)
        if not self.keep:
            return
        x = x.unsqueeze(0)
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

    def add(self, x: paddle.Tensor) -> None:
        """Look at the inputs of one step, [b, ..., i]."""
        self.observer(x.astype("float32"))

    @property
    def step(self) -> float:
        """What one unit of the 8-bit activations stands for."""
        return max(float(self.observer.scales()), 1e-8) / 127


def _rows(x: paddle.Tensor) -> paddle.Tensor:
    return x.reshape([-1, x.shape[-1]]).astype("float32")
