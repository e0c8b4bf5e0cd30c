"""The attention mask of packed rows: every conversation sees itself and what came before in it, nothing else."""

from __future__ import annotations

import paddle


def block_diagonal_mask(segment_ids: paddle.Tensor, num_prefix_tokens: int = 0) -> paddle.Tensor:
    """Build the causal block-diagonal mask of packed rows.

    Args:
        segment_ids: int64 [batch, seq]; 1..n number the conversations packed into a row, 0 is padding.
        num_prefix_tokens: width of a tuned prefix in front of the keys, which every position may see.

    Returns:
        bool [batch, 1, seq, num_prefix_tokens + seq]; True where a query (second to last axis) may see a key.
    """
    batch, length = segment_ids.shape
    queries, keys = segment_ids.unsqueeze(2), segment_ids.unsqueeze(1)
    causal = paddle.tril(paddle.ones([length, length], dtype="bool"))
    mask = ((queries == keys) & (keys != 0) & causal).unsqueeze(1)
    if num_prefix_tokens:
        mask = paddle.concat([paddle.ones([batch, 1, length, num_prefix_tokens], dtype="bool"), mask], axis=-1)
    return mask
