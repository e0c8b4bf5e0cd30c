"""ChatGLM2, ChatGLM3: few key/value heads, and pairs of neighbouring numbers rotated in the first half of each head."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F

from paddlesft.models.steps.rotary import angles, frequencies_of, rotate_pairs
from paddlesft.models.steps.step import DecoderStep, attention, for_groups, heads


class ChatGLMv2Step(DecoderStep):
    """One call of a ChatGLM2 or ChatGLM3 model."""

    def __init__(self, model: paddle.nn.Layer) -> None:
        super().__init__(model)
        self.register_buffer("frequencies", frequencies_of(self.body.rotary_pos_emb), persistable=False)

    @property
    def layers(self) -> Sequence[paddle.nn.Layer]:
        return self.body.encoder.layers

    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        hidden = self.body.embedding.word_embeddings(input_ids)
        angle = angles(position_ids, self.frequencies).astype("float32")
        bias = for_groups(bias, self.group)
        return hidden, (bias, paddle.cos(angle).astype(hidden.dtype), paddle.sin(angle).astype(hidden.dtype))

    def layer(
        self,
        layer: paddle.nn.Layer,
        hidden: paddle.Tensor,
        past_keys: paddle.Tensor,
        past_values: paddle.Tensor,
        *shared: paddle.Tensor,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        bias, cos, sin = shared
        attn, n, d = layer.self_attention, past_keys.shape[1], past_keys.shape[3]
        normed = layer.input_layernorm(hidden)
        residual = normed if layer.apply_residual_connection_post_layernorm else hidden
        mixed = attn.query_key_value(normed)
        queries, keys, values = paddle.split(mixed, [n * self.group * d, n * d, n * d], axis=-1)
        queries = self.rotated(heads(queries, n * self.group, d), cos, sin)
        keys, values = self.rotated(heads(keys, n, d), cos, sin), heads(values, n, d)
        attended = residual + attn.dense(attention(queries, keys, values, past_keys, past_values, bias))
        normed = layer.post_attention_layernorm(attended)
        residual = normed if layer.apply_residual_connection_post_layernorm else attended
        gate, up = paddle.split(layer.mlp.dense_h_to_4h(normed), 2, axis=-1)
        return residual + layer.mlp.dense_4h_to_h(F.silu(gate) * up), keys, values

    @staticmethod
    def rotated(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
        """Rotate the first half of each head, [b, n, s, d]."""
        first, rest = paddle.split(x, 2, axis=-1)
        return paddle.concat([rotate_pairs(first, cos, sin), rest], axis=-1)

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.encoder.final_layernorm(hidden) if self.body.encoder.post_layer_norm else hidden
