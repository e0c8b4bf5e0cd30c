"""Factors that move the range of activations into the weights, input by input: x' = x / s, W' = s W.

Linear layers that share an input (queries, keys and values) get factors of their own: each divides the input itself, so
nothing forces them to agree, and a weight takes over no more of the range than its own rows allow. Factors that are put
into a norm in front, as SmoothQuant and PaddleSlim have it, must be the same for all who read it.

Shape legend: i inputs, o outputs, n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle

from paddlesft.models.quantized.formats import WeightFormat, dequantize, quantize
from paddlesft.quantization.inputs import Range
from paddlesft.quantization.paddleslim import PieceWiseSearch, prints_to_log, same_random_numbers

ALPHA = 0.5
SMALLEST = 1e-5
INT8 = WeightFormat("int8")
# What the piecewise search tries its some 200 factors on: for each Linear of SmolLM2 it takes seconds otherwise.
SEARCH_TOKENS = 256
SEARCH_OUTPUTS = 128


@dataclass(frozen=True)
class PieceSearch:
    """Options of the piecewise search, as PaddleSlim's ``PieceWiseSearch`` takes them.

    Attributes:
        pieces: groups of inputs, by their range, each of which gets an alpha of its own.
        search_pieces: try all numbers of groups up to ``pieces``.
        alpha_min, alpha_max: alphas that are tried.
        scale_min, scale_max: constant factors that are tried after them.
    """

    pieces: int = 3
    search_pieces: bool = False
    alpha_min: float = 0.2
    alpha_max: float = 0.8
    scale_min: float = 1.0
    scale_max: float = 5.0


def smooth_factors(seen: Range, weight: paddle.Tensor, alpha: float = ALPHA) -> paddle.Tensor:
    """Return max|x|^alpha / max|w|^(1 - alpha) for each input (SmoothQuant, arXiv:2211.10438, equation 4).

    Args:
        seen: range of the inputs.
        weight: [i, o].
        alpha: how much of the range the weight takes.

    Returns:
        float32 [i], all positive.
    """
    largest = weight.astype("float32").abs().max(axis=1)
    factors = seen.largest**alpha / paddle.clip(largest, min=SMALLEST) ** (1 - alpha)
    return _usable(factors, seen.largest)


def searched_factors(seen: Range, weight: paddle.Tensor, options: PieceSearch) -> paddle.Tensor:
    """Search the factors that change the layer's output least when weight and activations have 8 bits.

    PaddleSlim's search finds factors for each number of pieces; the best of them, of SmoothQuant's formula and of no
    factors at all is taken. Its own choice between numbers of pieces (2.6.0) is not used: it adds the factors of one
    number to those of the next.

    Args:
        seen: range of the inputs, with inputs kept.
        weight: [i, o].
        options: what is tried.

    Returns:
        float32 [i], all positive.
    """
    weight = weight.astype("float32")
    candidates = [paddle.ones_like(seen.largest), smooth_factors(seen, weight)]
    for pieces in range(1 if options.search_pieces else options.pieces, options.pieces + 1):
        search = PieceWiseSearch(
            k_piece=pieces,
            search_alpha_min=options.alpha_min,
            search_alpha_max=options.alpha_max,
            search_scale_min=options.scale_min,
            search_scale_max=options.scale_max,
        )
        with prints_to_log(), same_random_numbers(), paddle.no_grad():
            found = search.search("", seen.samples, seen.largest.unsqueeze(0), some_outputs(weight))
        candidates.append(_usable(found.reshape([-1]), seen.largest))
    return min(candidates, key=lambda factors: rounding_error(seen.samples, weight, factors))


@paddle.no_grad()
def some_outputs(weight: paddle.Tensor, count: int = SEARCH_OUTPUTS) -> paddle.Tensor:
    """Take every so many outputs of a weight, and one that stands for the range of all.

    Args:
        weight: float32 [i, o].
        count: outputs that are enough.

    Returns:
        float32 [i, about count + 1]: outputs at even distances, each of which is rounded by a scale of its own, and
        the largest magnitude of every input, which the factors that are tried depend on; the weight itself where it
        has no more outputs.
    """
    outputs = weight.shape[1]
    if outputs <= count:
        return weight
    even = np.linspace(0, outputs - 1, count).astype(np.int64)
    taken = paddle.index_select(weight, paddle.to_tensor(even), axis=1)
    return paddle.concat([taken, weight.abs().max(axis=1, keepdim=True)], axis=1)


@paddle.no_grad()
def rounding_error(samples: paddle.Tensor, weight: paddle.Tensor, factors: paddle.Tensor) -> float:
    """Return |x W - q(x / factors) q(factors W)|^2, with q rounding to 8 bits.

    Args:
        samples: x, [1, n, i].
        weight: W, float32 [i, o].
        factors: float32 [i].
    """
    x, wide = samples / factors, weight * factors.unsqueeze(1)
    step = paddle.clip(x.abs().max(), min=SMALLEST) / 127
    rounded = dequantize(quantize(wide, INT8), INT8, weight.shape[0])
    return float(
        (paddle.matmul(samples, weight) - paddle.matmul(paddle.round(x / step) * step, rounded)).square().sum()
    )


def _usable(factors: paddle.Tensor, largest: paddle.Tensor) -> paddle.Tensor:
    """Inputs that were always 0 keep their weight; no factor is 0 or infinite."""
    factors = paddle.clip(factors, min=SMALLEST, max=1 / SMALLEST)
    return paddle.where((largest > 0) & paddle.isfinite(factors), factors, paddle.ones_like(factors))
