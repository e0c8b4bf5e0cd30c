"""Factors that move the range of activations into the weights, input by input: x' = x / s, W' = s W.

Shape legend: i inputs, o outputs, n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import paddle

from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.quantization.inputs import Range
from paddlesft.quantization.paddleslim import AWQSearch, PieceWiseSearch, prints_to_log

ALPHA = 0.5
SMALLEST = 1e-5


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

    Args:
        seen: range of the inputs, with inputs kept.
        weight: [i, o].
        options: what is tried.

    Returns:
        float32 [i], all positive.
    """
    search = PieceWiseSearch(
        k_piece=options.pieces,
        search_piece=options.search_pieces,
        search_alpha_min=options.alpha_min,
        search_alpha_max=options.alpha_max,
        search_scale_min=options.scale_min,
        search_scale_max=options.scale_max,
    )
    with prints_to_log(), paddle.no_grad():
        found = search.search("", seen.samples, seen.largest.unsqueeze(0), weight.astype("float32"))
    return _usable(found.reshape([-1]), seen.largest)


def awq_factors(seen: Range, weight: paddle.Tensor, how: WeightFormat) -> paddle.Tensor:
    """Search the factors that change the layer's output least when only the weight is rounded (arXiv:2306.00978).

    Args:
        seen: range of the inputs, with inputs kept.
        weight: [i, o]; a group size of ``how`` divides i.
        how: the format the weight will have.

    Returns:
        float32 [i], all positive.
    """
    method = "groupwise" if how.group_size else "abs_max_channel_wise"
    search = AWQSearch(bits_length=how.bits, weight_quant_method=method, group_size=how.group_size or -1)
    mean = seen.samples.abs().mean(axis=[0, 1]).unsqueeze(0)
    with prints_to_log(), paddle.no_grad():
        found = search.search("", seen.samples, mean, weight.astype("float32"))
    return _usable(found.reshape([-1]), seen.largest)


def _usable(factors: paddle.Tensor, largest: paddle.Tensor) -> paddle.Tensor:
    """Inputs that were always 0 keep their weight; no factor is 0 or infinite."""
    factors = paddle.clip(factors, min=SMALLEST, max=1 / SMALLEST)
    return paddle.where((largest > 0) & paddle.isfinite(factors), factors, paddle.ones_like(factors))
