"""GPTQ: round a weight input by input, and let the inputs that follow make up for each rounding (arXiv:2210.17323).

Shape legend: i inputs, o outputs, g groups of inputs that share a scale.

The inputs with the largest second moment come first; the scales of groups are those of the weight before anything was
made up for, so that they do not depend on this order. Inputs that calibration has never seen are rounded to the
nearest. The loop over inputs is numpy's, on every device: each step is a few operations on one row of the weight, which
Paddle's dispatch takes twenty times as long to start.

PaddleSlim's ``GPTQ`` is not used: its ``fasterquant`` (2.6.0) fails on Paddle 3 where every input is alive
(``paddle.where`` of nothing), gives up on a singular Hessian, finds the scales of groups after it has reordered the
inputs, and returns rounded floats instead of codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import paddle

from paddlesft.errors import UserError
from paddlesft.models.quantized.formats import INTEGERS, TABLES, WeightFormat, encode, scale_of, scales_of

DAMPING = 0.01  # share of the mean of the Hessian's diagonal that is added to it
MOST_DAMPING = 10.0
BLOCK = 128  # inputs whose errors are collected before they are passed on to all that follow
STRIP = 16  # inputs of a block whose errors are collected before they are passed on to the rest of the block


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
    weight: paddle.Tensor,
    hessian: paddle.Tensor,
    how: WeightFormat,
    damping: float = DAMPING,
    where: str = "",
    scales: paddle.Tensor | None = None,
) -> Rounded:
    """Round a weight such that the layer's output changes little on the tokens that the Hessian was made from.

    Args:
        weight: [i, o] of any float type.
        hessian: float32 [i, i]: the mean of x x^T over calibration tokens, up to a factor.
        how: the format.
        damping: the first to be tried; ten times as much after each failure (a singular Hessian).
        where: the layer, for messages.
        scales: float32 [g, o]; None: those of ``formats.scales_of``.

    Returns:
        Codes and scales.

    Raises:
        SingularHessian: the Hessian cannot be inverted; it holds numbers that are not finite.
    """
    with paddle.no_grad():
        weight, hessian = weight.astype("float32"), hessian.astype("float32")
        scales = scales_of(weight, how) if scales is None else scales
        moments = np.diag(hessian.numpy())
        alive = moments > 0
        order = np.argsort(-moments, kind="stable")
        dead = np.where(alive, 0, moments[alive].mean() if alive.any() else 1).astype(np.float32)
        ordered = _permuted(hessian + paddle.diag(paddle.to_tensor(dead)), paddle.to_tensor(order))
        factors, used = _inverse_factors(ordered, damping, where)
        rounded = np.empty(weight.shape, np.float32)
        rounded[order] = _rounded(
            weight.numpy()[order], _steps(scales, how, weight.shape[0])[order], factors, _nearest_value(how)
        )
        result = paddle.to_tensor(rounded)
        return Rounded(encode(result, scales, how), used, output_error(weight, result, hessian))


def _rounded(
    left: np.ndarray, steps: np.ndarray, factors: np.ndarray, nearest: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Round the rows of a weight in their order.

    Args:
        left: [i, o], what is still to be rounded; is overwritten.
        steps: [i, o], the scale of each number.
        factors: [i, i], upper triangular.
        nearest: rounds numbers that are divided by their scale.

    Returns:
        Rounded numbers, [i, o].
    """
    inputs, outputs = left.shape
    done, diagonal = np.empty_like(left), np.diag(factors)
    for begin in range(0, inputs, BLOCK):
        end = min(begin + BLOCK, inputs)
        errors = np.empty((end - begin, outputs), np.float32)
        for first in range(begin, end, STRIP):
            last = min(first + STRIP, end)
            for i in range(first, last):
                done[i] = nearest(left[i] / steps[i]) * steps[i]
                error = errors[i - begin] = (left[i] - done[i]) / diagonal[i]
                left[i + 1 : last] -= factors[i, i + 1 : last, None] * error
            left[last:end] -= factors[first:last, last:end].T @ errors[first - begin : last - begin]
        left[end:] -= factors[begin:end, end:].T @ errors
    return done


def _nearest_value(how: WeightFormat) -> Callable[[np.ndarray], np.ndarray]:
    if how.name in INTEGERS:
        largest = INTEGERS[how.name]
        return lambda units: np.clip(np.rint(units), -largest - 1, largest)
    table = np.sort(np.asarray(TABLES[how.name], dtype=np.float32))
    between = (table[1:] + table[:-1]) / 2
    return lambda units: table[np.searchsorted(between, units)]


def _steps(scales: paddle.Tensor, how: WeightFormat, inputs: int) -> np.ndarray:
    """Return the scale of each number as it will be read, never 0: [i, o]."""
    if how.double_quantization:
        scales = scale_of(encode(paddle.zeros([inputs, scales.shape[1]]), scales, how), how)
    values = scales.numpy()
    values = np.where(values == 0, np.float32(1), values)
    return values[np.arange(inputs) // (how.group_size or inputs)]


def _permuted(matrix: paddle.Tensor, order: paddle.Tensor) -> paddle.Tensor:
    return paddle.gather(paddle.gather(matrix, order), order, axis=1)


def _inverse_factors(hessian: paddle.Tensor, damping: float, where: str) -> tuple[np.ndarray, float]:
    """Return the upper triangular U with U^T U = H^-1, float32 [i, i], and the damping that made it possible.

    H = R R^T with R upper triangular gives U = R^-1 without an inverse of H. R is the Cholesky factor of H with rows
    and columns in opposite order.
    """
    mean = float(paddle.diag(hessian).mean())
    identity = paddle.eye(hessian.shape[0], dtype="float64")
    while damping <= MOST_DAMPING:
        damped = hessian.astype("float64") + identity * (damping * mean)
        try:
            factor = paddle.linalg.cholesky(paddle.flip(damped, [0, 1]))
            inverse = paddle.linalg.triangular_solve(factor, identity, upper=False)
        except (ValueError, RuntimeError, OSError):  # not positive definite, in the words of the device
            inverse = None
        if inverse is not None:
            factors = np.ascontiguousarray(inverse.numpy()[::-1, ::-1], dtype=np.float32)
            if np.isfinite(factors).all() and np.diag(factors).all():
                return factors, damping
        damping *= 10
    raise SingularHessian(
        f"GPTQ cannot quantize {where or 'a layer'}: the inputs it saw in calibration give no invertible Hessian, even "
        f"with damping {MOST_DAMPING:g}. Usual causes: numbers that are not finite in the model, or a few identical "
        "calibration rows. Give more and other rows, or put the layer on skip_list_names."
    )


def output_error(weight: paddle.Tensor, rounded: paddle.Tensor, hessian: paddle.Tensor) -> float:
    """Return |x (w - q)|^2 / |x w|^2 over the tokens that the Hessian was made from."""
    difference = weight - rounded
    lost, whole = ((paddle.matmul(hessian, m) * m).sum() for m in (difference, weight))
    return float(lost) / max(float(whole), 1e-30)
