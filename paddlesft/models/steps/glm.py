"""GLM: learned positions of two parts, see ``models/decoders/glm.py``."""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from paddlesft.models.steps.step import DecoderStep, attention, gelu, heads


class GLMStep(DecoderStep):
    """One call of a GLM model."""

    two_part_positions = True

    @property
    def layers(self) -> Sequence[paddle.nn.Layer]:
        return self.body.transformer.layers

    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        stack = self.body.transformer
        positions, block_positions = (part.squeeze(1) for part in paddle.split(position_ids, 2, axis=1))
        hidden = self.body.word_embeddings(input_ids) + stack.position_embeddings(positions)
        if stack.block_position_encoding:
            hidden = hidden + stack.block_position_embeddings(block_positions)
        return hidden, (bias,)

    def layer(
        self,
        layer: paddle.nn.Layer,
        hidden: paddle.Tensor,
        past_keys: paddle.Tensor,
        past_values: paddle.Tensor,
        *shared: paddle.Tensor,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        attn, n, d = layer.attention, past_keys.shape[1], past_keys.shape[3]
        mixed = attn.query_key_value(layer.input_layernorm(hidden))
        if self.config.tensor_parallel_degree > 1:  # PaddleNLP: for each head its query, key and value
            queries, keys, values = paddle.split(heads(mixed, n, 3 * d), 3, axis=-1)
        else:
            queries, keys, values = (heads(part, n, d) for part in paddle.split(mixed, 3, axis=-1))
        hidden = hidden + attn.dense(attention(queries, keys, values, past_keys, past_values, *shared))
        mlp = layer.mlp
        grown = gelu(mlp.dense_h_to_4h(layer.post_attention_layernorm(hidden)), tanh_form=True)
        return hidden + mlp.dense_4h_to_h(grown), keys, values

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.transformer.final_layernorm(hidden)
