"""Grouped-query attention with rotary positions as one differentiable step on CPU.

The query heads that share a key/value head are stacked along the sequence, so keys and values are never repeated and
their gradients sum over the group inside one product. The mask is added to the scores by broadcasting, as upstream
gives it: causal, padding and packing need no case of their own. Kept for the backward pass: turned queries and keys,
values and probabilities (Ainslie et al. 2023, arXiv:2305.13245).

Shapes: b batch, s sequence, h query heads, k key/value heads, g = h / k, d head size.
"""

from __future__ import annotations

import math

from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer
from paddlenlp.transformers.llama.modeling import LlamaAttention

from paddlesft.models.fast.linear import linears
from paddlesft.models.fast.primitives import SHORT_SIDE, broadcast_add, matmul, softmax, transpose
from paddlesft.models.fast.rotary import Turn, turn, turn_back, turn_tables

HEADS_FIRST = [0, 2, 1, 3]


class AttentionFunction(PyLayer):
    """``(q [b, s, h·d], k [b, s, k·d], v [b, s, k·d], mask [b, 1, s, s], tables, d) -> [b, s, h·d]``."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, tables: Turn, head_size: int) -> Tensor:
        b, s, width = query.shape
        heads, groups = width // head_size, key.shape[-1] // head_size
        ctx.tables = tables
        ctx.query_tables = tables.scaled(1.0 / math.sqrt(head_size))
        q = turn(transpose(query.reshape([b, s, heads, head_size]), HEADS_FIRST), ctx.query_tables)
        k = turn(transpose(key.reshape([b, s, groups, head_size]), HEADS_FIRST), tables)
        v = transpose(value.reshape([b, s, groups, head_size]), HEADS_FIRST)
        stacked = q.reshape([b * groups, -1, head_size])
        k, v = k.reshape([b * groups, s, head_size]), v.reshape([b * groups, s, head_size])
        scores = matmul(stacked, k, transpose_y=True).reshape([b, heads, s, s])
        probabilities = softmax(broadcast_add(scores, mask)).reshape([b * groups, -1, s])
        ctx.save_for_backward(stacked, k, v, probabilities)
        ctx.sizes = (b, s, heads, groups, head_size)
        attended = matmul(probabilities, v).reshape([b, heads, s, head_size])
        return transpose(attended, HEADS_FIRST).reshape([b, s, width])

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, probabilities = ctx.saved_tensor()
        b, s, heads, groups, d = ctx.sizes
        grad = transpose(grad.reshape([b, s, heads, d]), HEADS_FIRST).reshape([b * groups, -1, d])
        grad_v = matmul(probabilities, grad, transpose_x=True)
        grad_scores = _C_ops.softmax_grad(probabilities, matmul(grad, v, transpose_y=True), -1)
        grad_q = turn_back(matmul(grad_scores, k).reshape([b, heads, s, d]), ctx.query_tables)
        grad_k = turn_back(matmul(grad_scores, q, transpose_x=True).reshape([b, groups, s, d]), ctx.tables)
        return (
            transpose(grad_q, HEADS_FIRST).reshape([b, s, heads * d]),
            transpose(grad_k, HEADS_FIRST).reshape([b, s, groups * d]),
            transpose(grad_v.reshape([b, groups, s, d]), HEADS_FIRST).reshape([b, s, groups * d]),
            None,
        )


class FastAttention(LlamaAttention):
    """``LlamaAttention`` on the fast functions.

    Upstream's path serves what this one does not: a key/value cache or prefix, attention weights as output, ALiBi,
    short inputs, recomputation of the core alone, and unusual LoRA layers.
    """

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor | None = None,
        past_key_value: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        use_cache: bool = False,
        alibi: Tensor | None = None,
        attn_mask_startend_row_indices: Tensor | None = None,
        npu_is_casual: bool = False,
    ):
        """Attend over float32 [b, s, hidden]; arguments and result as upstream's."""
        b, s, width = hidden_states.shape
        plain = past_key_value is None and alibi is None and attn_mask_startend_row_indices is None
        plain = plain and not output_attentions and not use_cache and s >= SHORT_SIDE
        plain = plain and attention_mask is not None and attention_mask.shape == [b, 1, s, s]
        plain = plain and not (self.enable_recompute and self.recompute_granularity == "core_attn")
        projected = None
        if plain:
            projected = linears(hidden_states.reshape([-1, width]), [self.q_proj, self.k_proj, self.v_proj])
        if projected is None:
            return super().forward(
                hidden_states,
                position_ids,
                past_key_value,
                attention_mask,
                output_attentions,
                use_cache,
                alibi,
                attn_mask_startend_row_indices,
                npu_is_casual,
            )
        query, key, value = (y.reshape([b, s, y.shape[-1]]) for y in projected)
        tables = turn_tables(*self.rotary_emb(value, seq_len=s), position_ids)
        attended = AttentionFunction.apply(query, key, value, attention_mask, tables, self.head_dim)
        output = linears(attended.reshape([b * s, -1]), [self.o_proj])
        return self.o_proj(attended) if output is None else output[0].reshape([b, s, -1])
