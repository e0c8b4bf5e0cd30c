"""The attention mask of packed rows: every conversation sees itself and what came before in it, nothing else."""

from __future__ import annotations

import paddle


def block_diagonal_mask(
    segment_ids: paddle.Tensor, num_prefix_tokens: int = 0, seen_by_all: paddle.Tensor | None = None
) -> paddle.Tensor:
    """Build the causal block-diagonal mask of packed rows.

    Args:
        segment_ids: int64 [batch, seq]; 1..n number the conversations packed into a row, 0 is padding.
        num_prefix_tokens: width of a tuned prefix in front of the keys, which every position may see.
        seen_by_all: bool [batch, seq]; True on tokens that also the tokens before them in their segment see (prompts
            that attend in both directions).

    Returns:
        bool [batch, 1, seq, num_prefix_tokens + seq]; True where a query (second to last axis) may see a key.
    """
    batch, length = segment_ids.shape
    queries, keys = segment_ids.unsqueeze(2), segment_ids.unsqueeze(1)
    visible = paddle.tril(paddle.ones([length, length], dtype="bool"))
    if seen_by_all is not None:
        visible = visible | seen_by_all.unsqueeze(1)
    mask = ((queries == keys) & (keys != 0) & visible).unsqueeze(1)
    if num_prefix_tokens:
        mask = paddle.concat([paddle.ones([batch, 1, length, num_prefix_tokens], dtype="bool"), mask], axis=-1)
    return mask
