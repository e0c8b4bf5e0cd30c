"""The parts of PaddleSlim that quantization stands on, imported in one place: it warns and prints a lot."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle

from paddlesft.errors import EnvironmentProblem
from paddlesft.known_versions import EXTRAS, requirements

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from paddleslim.quant.advanced import (
            GPTQ,
            AutoClip,
            AWQSearch,
            MultiStepSampler,
            PieceWiseSearch,
            piecewise_search,
        )
        from paddleslim.quant.advanced import EMASampler as PaddleSlimEMASampler
        from paddleslim.quant.advanced.utils import k_means
        from paddleslim.quant.observers.abs_max import AbsmaxObserverLayer
        from paddleslim.quant.observers.avg import AVGObserverLayer
except ImportError as error:
    raise EnvironmentProblem(
        f"Quantizing needs packages of the extra quant: {error}. Run: pip install "
        + " ".join(f"'{one}'" for one in requirements(EXTRAS["quant"]))
    ) from error

__all__ = [
    "GPTQ", "AVGObserverLayer", "AWQSearch", "AbsmaxObserverLayer", "AutoClip", "EMASampler", "MultiStepSampler",
    "PieceWiseSearch", "prints_to_log", "same_random_numbers",
]  # fmt: skip
log = logging.getLogger("paddlesft")


def k_means_with_long_labels(*arguments: Any) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return PaddleSlim's centres and labels; the labels as int64, which Paddle compares with the rest silently."""
    centres, labels = k_means(*arguments)
    return centres, labels.astype("int64")


piecewise_search.k_means = k_means_with_long_labels


class EMASampler(PaddleSlimEMASampler):
    """An exponential moving average that is right from its first step on.

    PaddleSlim's (2.6.0) counts one step too few when it corrects the bias of a young average: it gives 2 % of the first
    value, and twice the second.
    """

    def sample(self, x: paddle.Tensor, sampled_x: paddle.Tensor | None = None, layer_name: str = "") -> paddle.Tensor:
        """Return the average with ``x`` as its newest value; the average of each name is kept."""
        first = layer_name not in self.ema_step
        average = super().sample(x, sampled_x, layer_name)
        if not first:
            return average
        self.ema_step[layer_name] = 1
        return x


@contextlib.contextmanager
def prints_to_log() -> Iterator[None]:
    """Turn what PaddleSlim prints into debug lines of the log; Paddle's warnings about its code are left out."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for line in printed.getvalue().splitlines():
            log.debug("paddleslim: %s", line)


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Give PaddleSlim's k-means, which draws its first centres, the same numbers in every run."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
