"""Qwen 1: like Llama, with one matrix for queries, keys and values, which have biases."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F

from paddlesft.models.steps.rotary import angles, frequencies_of, rotate_halves, tables
from paddlesft.models.steps.step import DecoderStep, attention, heads


class QWenStep(DecoderStep):
    """One call of a Qwen 1 model."""

    def __init__(self, model: paddle.nn.Layer) -> None:
        super().__init__(model)
        self.register_buffer("frequencies", frequencies_of(self.layers[0].attn.rotary_emb), persistable=False)

    @property
    def layers(self) -> Sequence[paddle.nn.Layer]:
        return self.body.h

    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        hidden = self.body.wte(input_ids)
        return hidden, (bias, *tables(angles(position_ids, self.frequencies), hidden.dtype))

    def layer(
        self,
        layer: paddle.nn.Layer,
        hidden: paddle.Tensor,
        past_keys: paddle.Tensor,
        past_values: paddle.Tensor,
        *shared: paddle.Tensor,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        bias, cos, sin = shared
        attn, n, d = layer.attn, past_keys.shape[1], past_keys.shape[3]
        parts = paddle.split(attn.c_attn(layer.ln_1(hidden)), 3, axis=-1)
        queries, keys, values = (heads(part, n, d) for part in parts)
        queries, keys = rotate_halves(queries, cos, sin), rotate_halves(keys, cos, sin)
        hidden = hidden + attn.c_proj(attention(queries, keys, values, past_keys, past_values, bias))
        mlp, normed = layer.mlp, layer.ln_2(hidden)
        if mlp.fuse_attention_ffn:
            gate, up = paddle.split(mlp.gate_up_fused_proj(normed), 2, axis=-1)
        else:
            gate, up = mlp.w2(normed), mlp.w1(normed)
        return hidden + mlp.c_proj(F.silu(gate) * up), keys, values

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.ln_f(hidden)
