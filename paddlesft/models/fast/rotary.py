"""Rotary position embedding on head-major tensors.

Upstream turns by ``x cos + rotate_half(x) sin``. ``rotate_half`` is a roll by half the head size whose first half
changes sign; the sign is put into the table, so a turn is one roll, two products and one sum. The turn is linear, its
gradient is ``g cos + roll(g sin)``. A factor (the attention's 1/sqrt(d)) can ride in the tables for nothing
(Su et al. 2021, arXiv:2104.09864).

Shapes: b batch, h heads, s sequence, d head size.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor, _C_ops

from paddlesft.models.fast.primitives import broadcast_multiply


class Turn(NamedTuple):
    """Tables of a rotation: ``cos`` and sign-carrying ``sin``, each float32 [b or 1, 1, s, d]."""

    cos: Tensor
    sin: Tensor

    def scaled(self, factor: float) -> Turn:
        """Return the rotation followed by a multiplication with ``factor``."""
        return Turn(self.cos * factor, self.sin * factor)


def turn_tables(cos: Tensor, sin: Tensor, position_ids: Tensor | None) -> Turn:
    """Select the rows of upstream's tables that a batch needs.

    Args:
        cos, sin: upstream's tables, float32 [1, positions, 1, d].
        position_ids: int64 [b, s], or None for 0, 1, 2, ...

    Returns:
        The tables for the batch.
    """
    half = cos.shape[-1] // 2
    cos, sin = cos.squeeze([0, 2]), sin.squeeze([0, 2])
    sin = paddle.concat([-sin[:, :half], sin[:, half:]], axis=-1)
    if position_ids is None:
        return Turn(cos.unsqueeze([0, 1]), sin.unsqueeze([0, 1]))
    shape = [*position_ids.shape, cos.shape[-1]]
    flat = position_ids.reshape([-1])
    return Turn(*(paddle.gather(table, flat).reshape(shape).unsqueeze(1) for table in (cos, sin)))


def turn(x: Tensor, tables: Turn) -> Tensor:
    """Rotate float32 [b, h, s, d]."""
    half = x.shape[-1] // 2
    turned = broadcast_multiply(_C_ops.roll(x, [half], [-1]), tables.sin)
    return _C_ops.add_(turned, broadcast_multiply(x, tables.cos))


def turn_back(grad: Tensor, tables: Turn) -> Tensor:
    """Return the gradient of ``turn`` with respect to its input; float32 [b, h, s, d]."""
    half = grad.shape[-1] // 2
    turned = _C_ops.roll(broadcast_multiply(grad, tables.sin), [half], [-1])
    return _C_ops.add_(turned, broadcast_multiply(grad, tables.cos))
