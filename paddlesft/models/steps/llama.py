"""Llama and the models built like it (Qwen2, Mistral, Gemma): root-mean-square norms, rotary positions, gated MLP."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F

from paddlesft.models.steps.rotary import angles, rotate_halves
from paddlesft.models.steps.step import DecoderStep, attention, for_groups, heads


class LlamaStep(DecoderStep):
    """One call of a Llama model."""

    def __init__(self, model: paddle.nn.Layer) -> None:
        super().__init__(model)
        first = self.layers[0].self_attn
        rotary = first.rotary_emb
        frequencies = rotary.inv_freq / getattr(rotary, "position_scale", 1.0)
        self.register_buffer("frequencies", frequencies.astype("float32"), persistable=False)

    @property
    def layers(self) -> Sequence[paddle.nn.Layer]:
        return self.body.layers

    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        hidden = self.body.embed_tokens(input_ids)
        bias = for_groups(bias, self.group)
        angle = angles(position_ids, self.frequencies)
        angle = paddle.concat([angle, angle], axis=-1)
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
        attn, n, d = layer.self_attn, past_keys.shape[1], past_keys.shape[3]
        normed = layer.input_layernorm(hidden)
        queries, keys, values = attn.q_proj(normed), attn.k_proj(normed), attn.v_proj(normed)
        queries = rotate_halves(heads(queries, queries.shape[-1] // d, d), cos, sin)
        keys = rotate_halves(heads(keys, n, d), cos, sin)
        values = heads(values, n, d)
        hidden = hidden + attn.o_proj(attention(queries, keys, values, past_keys, past_values, bias))
        mlp, normed = layer.mlp, layer.post_attention_layernorm(hidden)
        gated = F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed)  # paddle2onnx has no swiglu
        return hidden + mlp.down_proj(gated), keys, values

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.norm(hidden)
