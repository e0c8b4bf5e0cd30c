"""ChatGLM-6B: half of each head is rotated by the position, the other half by the block position.

PaddleNLP's layers divide queries by their layer's number and multiply scores with it again, for float16's sake; scores
are float32 here. Its hidden states have the tokens first; the layers that hold weights do not mind.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from paddlesft.models.steps.rotary import angles, frequencies_of, rotate_halves, tables
from paddlesft.models.steps.step import DecoderStep, attention, gelu, heads


class ChatGLMStep(DecoderStep):
    """One call of a ChatGLM model."""

    two_part_positions = True

    def __init__(self, model: paddle.nn.Layer) -> None:
        super().__init__(model)
        self.register_buffer("frequencies", frequencies_of(self.body.transformer.rotary_embeddings), persistable=False)

    @property
    def layers(self) -> Sequence[paddle.nn.Layer]:
        return self.body.transformer.layers

    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        hidden = self.body.transformer.word_embeddings(input_ids)
        angle = [angles(part.squeeze(1), self.frequencies) for part in paddle.split(position_ids, 2, axis=1)]
        return hidden, (bias, *tables(paddle.stack(angle), hidden.dtype))  # [2, b, 1, s, d / 2]

    def layer(
        self,
        layer: paddle.nn.Layer,
        hidden: paddle.Tensor,
        past_keys: paddle.Tensor,
        past_values: paddle.Tensor,
        *shared: paddle.Tensor,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        bias, cos, sin = shared
        attn, n, d = layer.attention, past_keys.shape[1], past_keys.shape[3]
        normed = layer.input_layernorm(hidden)
        queries, keys, values = paddle.split(heads(attn.query_key_value(normed), n, 3 * d), 3, axis=-1)
        queries, keys = self.rotated(queries, cos, sin), self.rotated(keys, cos, sin)
        scale = d**-0.5 if attn.attention_scale else layer.layer_id + 1.0
        attended = attn.dense(attention(queries, keys, values, past_keys, past_values, bias, scale))
        alpha = (2 * self.config.num_hidden_layers) ** 0.5
        normed = layer.post_attention_layernorm(alpha * normed + attended)
        grown = gelu(layer.mlp.dense_h_to_4h(normed), tanh_form=True)
        return alpha * normed + layer.mlp.dense_4h_to_h(grown), keys, values

    @staticmethod
    def rotated(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
        """Rotate both halves of each head, [b, n, s, d]."""
        halves = paddle.split(x, 2, axis=-1)
        return paddle.concat([rotate_halves(half, cos[i], sin[i]) for i, half in enumerate(halves)], axis=-1)

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.transformer.final_layernorm(hidden)
