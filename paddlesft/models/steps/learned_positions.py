"""GPT and OPT: learned positions, layer norms with biases, an MLP without a gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
import paddle.nn.functional as F

from paddlesft.models.family import Family
from paddlesft.models.hooked_call import call_with_hooks
from paddlesft.models.steps.step import DecoderStep, attention, gelu, heads


class LearnedPositionsStep(DecoderStep):
    """One call of such a model; subclasses give the embeddings, the activation and what stands at the end."""

    @property
    def layers(self) -> Sequence[paddle.nn.Layer]:
        return self.body.decoder.layers

    def layer(
        self,
        layer: paddle.nn.Layer,
        hidden: paddle.Tensor,
        past_keys: paddle.Tensor,
        past_values: paddle.Tensor,
        *shared: paddle.Tensor,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        attn, n, d = layer.self_attn, past_keys.shape[1], past_keys.shape[3]
        normed = layer.norm1(hidden) if self.normalizes_before else hidden
        if self.config.fuse_attention_qkv:  # for each head: its query, its key, its value
            mixed = heads(attn.qkv_proj(normed), n, 3 * d)
            queries, keys, values = paddle.split(mixed, 3, axis=-1)
        else:
            queries, keys, values = (heads(part(normed), n, d) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        hidden = hidden + attn.out_proj(attention(queries, keys, values, past_keys, past_values, *shared))
        if not self.normalizes_before:
            hidden = layer.norm1(hidden)
        normed = layer.norm2(hidden) if self.normalizes_before else hidden
        hidden = hidden + layer.linear2(self.activated(layer, layer.linear1(normed)))
        return (hidden if self.normalizes_before else layer.norm2(hidden)), keys, values

    @property
    def normalizes_before(self) -> bool:
        """Whether norms stand before attention and MLP instead of behind them."""
        return getattr(self.config, "normalize_before", True)

    def activated(self, layer: paddle.nn.Layer, hidden: paddle.Tensor) -> paddle.Tensor:
        """Apply the MLP's activation."""
        return layer.activation(hidden)


class GPTStep(LearnedPositionsStep):
    """One call of a GPT-2 or GPT-3 model."""

    @classmethod
    def refusal(cls, config: Any, family: Family) -> str:
        if config.hidden_activation != "gelu":  # PaddleNLP passes it approximate=True, which others do not take
            return f"hidden_activation: {config.hidden_activation}, but PaddleNLP's GPT can only run gelu"
        return super().refusal(config, family)

    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        return self.body.embeddings(input_ids=input_ids, position_ids=position_ids), (bias,)

    def activated(self, layer: paddle.nn.Layer, hidden: paddle.Tensor) -> paddle.Tensor:
        return gelu(hidden, tanh_form=True)

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.decoder.norm(hidden)


class OPTStep(LearnedPositionsStep):
    """One call of an OPT model."""

    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        embeddings = self.body.embeddings
        hidden = embeddings.word_embeddings(input_ids)
        if embeddings.project_in is not None:
            hidden = embeddings.project_in(hidden)
        table = embeddings.position_embeddings
        positions = call_with_hooks(table, lambda rows: F.embedding(rows, table.weight), position_ids + table.offset)
        return hidden + positions, (bias,)

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        decoder = self.body.decoder
        if decoder.final_layer_norm is not None:
            hidden = decoder.final_layer_norm(hidden)
        return hidden if decoder.project_out is None else decoder.project_out(hidden)
