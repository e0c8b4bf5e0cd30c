"""The causal mask of padded rows, and its form that is added to attention scores."""

from __future__ import annotations

import paddle


def causal_mask(key_mask: paddle.Tensor, num_queries: int) -> paddle.Tensor:
    """Build the causal mask of padded rows, with or without a cache.

    Args:
        key_mask: [batch, keys], nonzero on keys that are there, 0 on padding; the queries are its last positions.
        num_queries: positions of this call.

    Returns:
        bool [batch, 1, num_queries, keys]; True where a query may see a key.
    """
    keys = key_mask.shape[1]
    causal = paddle.tril(paddle.ones([num_queries, keys], dtype="bool"), diagonal=keys - num_queries)
    return key_mask.astype("bool").unsqueeze([1, 2]) & causal


def additive(mask: paddle.Tensor, masked: float) -> paddle.Tensor:
    """Turn a bool mask into what is added to attention scores.

    Args:
        mask: bool, True where a query may see a key.
        masked: the number for what it may not see. It has to be finite: a position of padding on the left sees
            nothing at all, and a row of minus infinities would become NaN in the softmax.

    Returns:
        float32 of the same shape.
    """
    return paddle.where(mask, paddle.zeros([], dtype="float32"), paddle.full([], masked, dtype="float32"))
