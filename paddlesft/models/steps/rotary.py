"""Rotary positions (Su et al. 2021, arXiv:2104.09864), computed for the positions of one call.

Shape legend as in ``step.py``; r numbers of a head that are rotated.
"""

from __future__ import annotations

import paddle


def angles(position_ids: paddle.Tensor, frequencies: paddle.Tensor) -> paddle.Tensor:
    """Return the angle of each pair of numbers, float32 [b, 1, s, r / 2].

    Args:
        position_ids: int64 [b, s].
        frequencies: float32 [r / 2], radians for each position.
    """
    return (position_ids.astype("float32").unsqueeze(-1) * frequencies).unsqueeze(1)


def tables(angle: paddle.Tensor, dtype: str | paddle.dtype) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return what ``rotate_halves`` is given.

    Args:
        angle: float32 [..., s, r / 2].
        dtype: of the numbers that are rotated.

    Returns:
        [..., s, r] each: the cosines twice over; the sines, those of first numbers with their sign.
    """
    cos, sin = paddle.cos(angle), paddle.sin(angle)
    return paddle.concat([cos, cos], axis=-1).astype(dtype), paddle.concat([-sin, sin], axis=-1).astype(dtype)


def rotate_halves(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
    """Rotate pairs whose second number stands half a head behind the first.

    Args:
        x: [b, h, s, r].
        cos: [b, 1, s, r], see ``tables``.
        sin: [b, 1, s, r], likewise.
    """
    first, second = paddle.split(x, 2, axis=-1)
    return x * cos + paddle.concat([second, first], axis=-1) * sin


def rotate_pairs(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
    """Rotate pairs of neighbouring numbers.

    Args:
        x: [b, h, s, r].
        cos: [b, 1, s, r / 2].
        sin: [b, 1, s, r / 2].
    """
    h, r = x.shape[1], x.shape[3]
    even, odd = (part.squeeze(-1) for part in paddle.split(x.reshape([0, h, -1, r // 2, 2]), 2, axis=-1))
    return paddle.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape([0, h, -1, r])


def frequencies_of(rotary: paddle.nn.Layer) -> paddle.Tensor:
    """Return the frequencies of one of PaddleNLP's rotary layers, float32 [r / 2].

    NTK and LLaMA 3's scaling have changed them already; linear scaling divides positions instead.
    """
    divisor = rotary.scaling_factor if type(rotary).__name__ == "LlamaLinearScalingRotaryEmbedding" else 1.0
    return (rotary.inv_freq / divisor).astype("float32")
