"""BLOOM: no positions, but a bias of each key by where it stands (ALiBi), see ``models/decoders/bloom.py``."""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from paddlesft.models.decoders.bloom import slopes
from paddlesft.models.steps.step import DecoderStep, attention, gelu


class BloomStep(DecoderStep):
    """One call of a BLOOM model."""

    def __init__(self, model: paddle.nn.Layer) -> None:
        super().__init__(model)
        ranks, rank = max(self.config.tensor_parallel_degree, 1), max(self.config.tensor_parallel_rank, 0)
        own = self.config.n_head // ranks
        values = paddle.to_tensor(slopes(self.config.n_head)[rank * own : (rank + 1) * own], dtype="float32")
        self.register_buffer("slopes", values.reshape([1, own, 1, 1]), persistable=False)

    @property
    def layers(self) -> Sequence[paddle.nn.Layer]:
        return self.body.h

    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        hidden = self.body.word_embeddings_layernorm(self.body.word_embeddings(input_ids))
        # A key in the cache stands where its column is, a new one behind those that are filled: a first token sees
        # them all, the prefix too, which may differ from row to row and has no positions.
        columns = paddle.shape(bias)[3] - paddle.shape(input_ids)[1]
        filled = (bias[:, 0, 0, :columns] == 0).astype("float32").sum(axis=-1, keepdim=True)
        new = (position_ids - position_ids[:, :1]).astype("float32") + filled
        past = paddle.arange(0, columns, 1, dtype="float32").unsqueeze(0) + paddle.zeros_like(new[:, :1])
        keys = paddle.concat([past, new], axis=-1).unsqueeze([1, 2])
        return hidden, (bias + self.slopes * keys,)

    def layer(
        self,
        layer: paddle.nn.Layer,
        hidden: paddle.Tensor,
        past_keys: paddle.Tensor,
        past_values: paddle.Tensor,
        *shared: paddle.Tensor,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        attn, n, d = layer.self_attention, past_keys.shape[1], past_keys.shape[3]
        normed = layer.input_layernorm(hidden)
        residual = normed if layer.apply_residual_connection_post_layernorm else hidden
        mixed = attn.query_key_value(normed).reshape([0, 0, n, 3 * d]).transpose([0, 2, 1, 3])
        queries, keys, values = paddle.split(mixed, 3, axis=-1)
        attended = residual + attn.dense(attention(queries, keys, values, past_keys, past_values, *shared))
        normed = layer.post_attention_layernorm(attended)
        residual = normed if layer.apply_residual_connection_post_layernorm else attended
        mlp = layer.mlp
        grown = gelu(mlp.dense_h_to_4h(normed), tanh_form=True)
        return residual + mlp.dense_4h_to_h(grown), keys, values

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.ln_f(hidden)
