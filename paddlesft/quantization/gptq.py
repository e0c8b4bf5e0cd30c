"""GPTQ: round a weight input by input, and let the inputs that follow make up for each rounding (arXiv:2210.17323).

Shape legend: i inputs, o outputs, g groups of inputs that share a scale, n tokens.

PaddleSlim's ``GPTQ`` layer collects the Hessian. Its ``fasterquant`` (2.6.0) is not used: it fails on Paddle 3 where
every input is alive (``paddle.where`` of nothing), gives up on a singular Hessian, finds the scales of groups after it
has reordered the inputs, and returns rounded floats instead of codes.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle

from paddlesft.errors import UserError
from paddlesft.models.quantized.formats import INTEGERS, WeightFormat, encode, scales_of

DAMPING = 0.01  # share of the mean of the Hessian's diagonal that is added to it
MOST_DAMPING = 10.0
BLOCK = 128  # inputs whose errors are collected before they are passed on to all that follow


class Rounded(NamedTuple):
    """A weight rounded by GPTQ.

    Attributes:
        stored: its tensors, see ``formats.quantize``.
        damping: what was added to the Hessian, as a share of the mean of its diagonal.
        error: mean square error of the layer's output over the calibration tokens, relative to the output's.
    """

    stored: dict[str, paddle.Tensor]
    damping: float
    error: float


class SingularHessian(UserError):
    """The inputs of a layer are so dependent on each other that no amount of damping helps."""


def round_by_hessian(
    weight: paddle.Tensor, hessian: paddle.Tensor, how: WeightFormat, damping: float = DAMPING, where: str = ""
) -> Rounded:
    """Round a weight such that the layer's output changes little on the tokens that the Hessian was made from.

    Args:
        weight: [i, o] of any float type.
        hessian: float32 [i, i]: the mean of x x^T over calibration tokens, up to a factor.
        how: an integer format.
        damping: the first to be tried; ten times as much after each failure.
        where: the layer, for messages.

    Returns:
        Codes and scales.

    Raises:
        SingularHessian: the Hessian cannot be inverted; it holds numbers that are not finite.
        ValueError: the format has no integers.
    """
    if how.name not in INTEGERS:
        raise ValueError(f"GPTQ rounds to integers, not to {how.name}")
    with paddle.no_grad():
        return _round(weight.astype("float32"), hessian.astype("float32"), how, damping, where)


def _round(weight: paddle.Tensor, hessian: paddle.Tensor, how: WeightFormat, damping: float, where: str) -> Rounded:
    inputs = weight.shape[0]
    diagonal = paddle.diag(hessian)
    alive = (diagonal > 0).astype("float32")  # as numbers: indexing by an empty selection fails on Paddle 3
    whole = weight * alive.unsqueeze(1)
    scales = scales_of(whole, how)
    order = paddle.argsort(diagonal, descending=True)
    factors, used = _inverse_factors(_permuted(hessian + paddle.diag(1 - alive), order), damping, where)
    largest = INTEGERS[how.name]
    group_of = order // how.group_size if how.group_size else paddle.zeros_like(order)
    steps = paddle.where(scales == 0, paddle.ones_like(scales), scales)
    steps = paddle.gather(steps, group_of)
    left = paddle.gather(whole, order)  # what is still to be rounded, in the order of importance
    done: list[paddle.Tensor] = []
    for begin in range(0, inputs, BLOCK):
        end = min(begin + BLOCK, inputs)
        block, passed_on = left[begin:end], []
        for i in range(end - begin):
            row, step = block[0], steps[begin + i]
            rounded = paddle.clip(paddle.round(row / step), -largest - 1, largest) * step
            error = (row - rounded) / factors[begin + i, begin + i]
            done.append(rounded)
            passed_on.append(error)
            block = block[1:]
            if i + 1 < end - begin:
                block = block - paddle.outer(factors[begin + i, begin + i + 1 : end], error)
        if end < inputs:
            spread = paddle.matmul(factors[begin:end, end:], paddle.stack(passed_on), transpose_x=True)
            left = paddle.concat([left[:end], left[end:] - spread])
    result = paddle.gather(paddle.stack(done), paddle.argsort(order))
    return Rounded(encode(result, scales, how), used, _output_error(weight, result, hessian))


def _permuted(matrix: paddle.Tensor, order: paddle.Tensor) -> paddle.Tensor:
    return paddle.gather(paddle.gather(matrix, order), order, axis=1)


def _inverse_factors(hessian: paddle.Tensor, damping: float, where: str) -> tuple[paddle.Tensor, float]:
    """Return the upper Cholesky factor of the inverse, and the damping that made it possible."""
    mean = float(paddle.diag(hessian).mean())
    while damping <= MOST_DAMPING:
        damped = (hessian + paddle.eye(hessian.shape[0]) * (damping * mean)).astype("float64")
        try:
            factors = paddle.linalg.cholesky(paddle.linalg.inv(damped), upper=True).astype("float32")
        except (ValueError, RuntimeError, OSError):  # not positive definite, in the words of the device
            factors = None
        if factors is not None and bool(paddle.isfinite(factors).all()):
            return factors, damping
        damping *= 10
    raise SingularHessian(
        f"GPTQ cannot quantize {where or 'a layer'}: the inputs it saw in calibration give no invertible Hessian, even "
        f"with damping {MOST_DAMPING:g}. Usual causes: numbers that are not finite in the model, or a few identical "
        "calibration rows. Give more and other rows, or put the layer on skip_list_names."
    )


def _output_error(weight: paddle.Tensor, rounded: paddle.Tensor, hessian: paddle.Tensor) -> float:
    """Return |x (w - q)|^2 / |x w|^2 over the tokens that the Hessian was made from."""
    difference = weight - rounded
    lost, whole = ((paddle.matmul(hessian, m) * m).sum() for m in (difference, weight))
    return float(lost) / max(float(whole), 1e-30)
