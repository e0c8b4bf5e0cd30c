"""Matrix product, transpose, softmax and swish on CPU through whichever of paddle's two libraries serves them better.

Paddle's eager API uses the MKL of its wheel and Eigen; the oneDNN that the wheel ships too is reached by an operator's
``use_mkldnn`` attribute. Measured on an AMD EPYC (Zen 5) in float32: matrix products run at twice MKL's speed, for that
MKL stops at AVX2 on AMD processors; a transposed copy takes a thirtieth of the time, a softmax half. Products with
a small side stay with MKL, which has less to set up. The choice depends on the processor and the shapes only, never on
a timing, so that a run repeats bit for bit.

These functions compute values and record no gradient: they are for the inside of a ``PyLayer``.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import paddle
from paddle import Tensor, _C_ops, _legacy_C_ops

MATMUL_VARIABLE = "PADDLESFT_CPU_MATMUL"
# A product with a shorter side than this (an adapter's rank, a decoding step) is quicker in MKL.
SHORT_SIDE = 32


@functools.lru_cache(maxsize=1)
def has_onednn() -> bool:
    """Return whether this paddle executes operators through oneDNN."""
    if not hasattr(_legacy_C_ops, "matmul_v2"):
        return False
    try:
        with paddle.no_grad():
            found = onednn_matmul(paddle.eye(2), paddle.to_tensor([[1.0, 2.0], [3.0, 4.0]]), False, False)
            swapped = onednn_transpose(found, [1, 0])
    except Exception:  # whatever an unfit build raises: MKL and Eigen serve then
        return False
    return swapped.tolist() == [[1.0, 3.0], [2.0, 4.0]]


@functools.lru_cache(maxsize=1)
def multiplies_with_onednn() -> bool:
    """Return whether oneDNN multiplies matrices faster than MKL here: on AMD processors with AVX-512.

    ``PADDLESFT_CPU_MATMUL=mkl`` or ``onednn`` decides instead.
    """
    wish = os.environ.get(MATMUL_VARIABLE, "").lower()
    if wish in ("mkl", "onednn"):
        return wish == "onednn" and has_onednn()
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return False
    return "AuthenticAMD" in processor and "avx512f" in processor and has_onednn()


def plain(x: Tensor) -> Tensor:
    """Drop oneDNN's description of a tensor's memory, which a later reshape would leave wrong; no copy is made."""
    return _C_ops.share_data(x)


def onednn_matmul(x: Tensor, y: Tensor, transpose_x: bool, transpose_y: bool) -> Tensor:
    """Multiply with oneDNN; arguments as for ``matmul``."""
    product = _legacy_C_ops.matmul_v2(x, y, "trans_x", transpose_x, "trans_y", transpose_y, "use_mkldnn", True)
    return plain(product)


def onednn_transpose(x: Tensor, order: list[int]) -> Tensor:
    """Transpose into a fresh tensor with oneDNN; arguments as for ``transpose``."""
    return plain(_legacy_C_ops.transpose2(x, "axis", order, "use_mkldnn", True)[0])


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Multiply two matrices or two stacks of matrices of equal leading sizes.

    Args:
        x: float32 [..., m, k], or [..., k, m] with ``transpose_x``.
        y: float32 [..., k, n], or [..., n, k] with ``transpose_y``.

    Returns:
        float32 [..., m, n].
    """
    if multiplies_with_onednn() and min(*x.shape[-2:], *y.shape[-2:]) >= SHORT_SIDE:
        return onednn_matmul(x, y, transpose_x, transpose_y)
    return _C_ops.matmul(x, y, transpose_x, transpose_y)


def transpose(x: Tensor, order: list[int]) -> Tensor:
    """Copy a tensor with its axes in another order.

    Args:
        x: any shape, contiguous.
        order: the axis of ``x`` that each axis of the result comes from.

    Returns:
        A contiguous tensor.
    """
    if has_onednn():
        return onednn_transpose(x, order)
    return _C_ops.transpose(x, order).contiguous()


def softmax(x: Tensor) -> Tensor:
    """Return the softmax over the last axis."""
    if has_onednn():
        return plain(_legacy_C_ops.softmax(x, "axis", -1, "use_mkldnn", True))
    return _C_ops.softmax(x, -1)


def swish(x: Tensor) -> Tensor:
    """Return ``x * sigmoid(x)``."""
    if has_onednn():
        return plain(_legacy_C_ops.swish(x, "beta", 1.0, "use_mkldnn", True))
    return _C_ops.silu(x)


def sigmoid(x: Tensor) -> Tensor:
    """Return ``1 / (1 + exp(-x))``."""
    if has_onednn():
        return plain(_legacy_C_ops.sigmoid(x, "use_mkldnn", True))
    return _C_ops.sigmoid(x)


def broadcast_multiply(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x * y`` where ``y`` is broadcast over some axes of ``x``."""
    if has_onednn():
        return plain(_legacy_C_ops.elementwise_mul(x, y, "use_mkldnn", True))
    return _C_ops.multiply(x, y)


def broadcast_add(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x + y`` where ``y`` is broadcast over some axes of ``x``."""
    if has_onednn():
        return plain(_legacy_C_ops.elementwise_add(x, y, "use_mkldnn", True))
    return _C_ops.add(x, y)


def row_means(x: Tensor) -> Tensor:
    """Return the mean of each row of ``x`` [n, w] as [n, 1]: a product with a column of 1/w, for speed."""
    width = x.shape[-1]
    return _C_ops.matmul(x, mean_column(width), False, False)


@functools.lru_cache(maxsize=8)
def mean_column(width: int) -> Tensor:
    """Return the float32 column [width, 1] whose entries are 1/width."""
    return paddle.full([width, 1], 1.0 / width, dtype="float32")
