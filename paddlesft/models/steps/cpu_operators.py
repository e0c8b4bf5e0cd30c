"""Operators of a step in main memory: what paddle's eager API takes much longer for than the processor needs.

Measured on an AMD EPYC (Zen 5), one thread: upstream's RMSNorm squares with the C library's ``pow`` and switches AMP on
and off, 0.1 ms for one token; a layer's call costs 7 µs more than its product; products of 32 rows and more take half
the time in oneDNN (``models/fast/primitives.py``), those of fewer rows are MKL's. While a graph is traced, on other
devices and in other dtypes everything is left to the model's own layers.

These are for inference: nothing here needs a gradient. Shapes as in ``step.py``; i input size, o output size.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import _C_ops, nn

from paddlesft.models.fast import primitives
from paddlesft.models.fast.linear import linears

MANY_ROWS = primitives.SHORT_SIDE


def serves(x: paddle.Tensor) -> bool:
    """Return whether ``x`` is at hand: in main memory, float32, and no graph is being traced."""
    return paddle.in_dynamic_mode() and x.dtype == paddle.float32 and x.place.is_cpu_place()


def has_hooks(layer: nn.Layer) -> bool:
    """Return whether a call of a layer does more than its forward."""
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


def linear(layer: nn.Layer, x: paddle.Tensor) -> paddle.Tensor:
    """Apply a linear layer of any class, [b, s, i] to [b, s, o]."""
    if not serves(x):
        return layer(x)
    b, s, i = x.shape
    if b * s >= MANY_ROWS:
        found = linears(x.reshape([b * s, i]), [layer])
        return layer(x) if found is None else found[0].reshape([b, s, -1])
    if type(layer) is nn.Linear and not has_hooks(layer):
        return _C_ops.linear(x, layer.weight, layer.bias)
    return layer(x)


def rms_norm(layer: nn.Layer, x: paddle.Tensor) -> paddle.Tensor:
    """Apply a norm ``x / sqrt(mean(x²) + variance_epsilon) * weight`` to [b, s, e]."""
    if not serves(x) or has_hooks(layer):
        return layer(x)
    if x.shape[1] == 1:
        squares = _C_ops.scale(_C_ops.matmul(x, x, False, True), 1.0 / x.shape[2], layer.variance_epsilon, True)
        return _C_ops.multiply(_C_ops.multiply(x, _C_ops.rsqrt(squares)), layer.weight)
    rows = x.reshape([-1, x.shape[-1]])
    scale = _C_ops.rsqrt(primitives.row_means(_C_ops.square(rows)) + layer.variance_epsilon)
    multiply = primitives.broadcast_multiply if rows.shape[0] >= MANY_ROWS else _C_ops.multiply
    return multiply(multiply(rows, scale), layer.weight).reshape(x.shape)


def silu(x: paddle.Tensor) -> paddle.Tensor:
    """Return ``x * sigmoid(x)``."""
    return primitives.swish(x.contiguous()) if serves(x) and x.shape[0] * x.shape[1] >= MANY_ROWS else F.silu(x)


def matmul(x: paddle.Tensor, y: paddle.Tensor, transpose_y: bool = False) -> paddle.Tensor:
    """Multiply stacks of matrices, [b, n, p, q] and [b, n, q, r], the latter [b, n, r, q] with ``transpose_y``."""
    if serves(x) and y.dtype == paddle.float32:
        return primitives.matmul(x.contiguous(), y.contiguous(), False, transpose_y)  # oneDNN knows no strides
    return paddle.matmul(x, y, transpose_y=transpose_y)


def biased_softmax(scores: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
    """Return the softmax over the last axis of float32 [b, n, p, q] plus [b, 1, p, q]."""
    if serves(scores) and scores.shape[2] >= MANY_ROWS:
        return primitives.softmax(primitives.broadcast_add(scores, bias))
    return F.softmax(scores + bias, axis=-1)


def few_logits(head: nn.Layer, hidden: paddle.Tensor) -> paddle.Tensor | None:
    """Multiply a few rows [b, 1, e] with a head that is the embedding [v, e]: MKL is quicker the other way around.

    Returns:
        Logits [b, 1, v]; None where the head's own forward serves as well.
    """
    rows = hidden.shape[0]
    if not serves(hidden) or not 1 < rows < MANY_ROWS or not getattr(head, "transpose_y", False) or has_hooks(head):
        return None
    if head.weight.dtype != paddle.float32 or head.config.tensor_parallel_degree > 1:
        return None
    found = _C_ops.matmul(head.weight, hidden.reshape([rows, -1]), False, True)
    return primitives.transpose(found, [1, 0]).unsqueeze(1)
