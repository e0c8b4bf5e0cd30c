"""Llama and the models built like it: root-mean-square norms, rotary positions, a gated MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle

from paddlesft.models.family import Family
from paddlesft.models.steps.cpu_operators import few_logits, linear, rms_norm, silu
from paddlesft.models.steps.rotary import angles, frequencies_of, rotate_halves, tables
from paddlesft.models.steps.step import DecoderStep, attention, for_groups, gelu, heads
from paddlesft.quirks import gemma_activation


class LlamaStep(DecoderStep):
    """One call of a Llama or Qwen2 model."""

    def __init__(self, model: paddle.nn.Layer) -> None:
        super().__init__(model)
        self.register_buffer("frequencies", frequencies_of(self.layers[0].self_attn.rotary_emb), persistable=False)

    @classmethod
    def refusal(cls, config: Any, family: Family) -> str:
        if getattr(config, "alibi", False):
            return "alibi: true, which only BLOOM's step knows"
        if getattr(config, "rope_scaling_type", None) == "dynamic_ntk":
            return "its rotary frequencies depend on the length of the row (rope_scaling_type: dynamic_ntk)"
        return super().refusal(config, family)

    @property
    def layers(self) -> Sequence[paddle.nn.Layer]:
        return self.body.layers

    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        hidden = self.embedded(input_ids)
        bias = for_groups(bias, self.group)
        return hidden, (bias, *tables(angles(position_ids, self.frequencies), hidden.dtype))

    def embedded(self, input_ids: paddle.Tensor) -> paddle.Tensor:
        """Return what the first layer is given, [b, s, e]."""
        return self.body.embed_tokens(input_ids)

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
        mixed, values = self.projected(attn, self.normed(layer.input_layernorm, hidden), n, d)
        queries, keys = paddle.split(rotate_halves(mixed, cos, sin), [n * self.group, n], axis=1)
        hidden = hidden + linear(attn.o_proj, attention(queries, keys, values, past_keys, past_values, bias))
        return hidden + self.gated(layer.mlp, self.normed(layer.post_attention_layernorm, hidden)), keys, values

    def projected(
        self, attn: paddle.nn.Layer, normed: paddle.Tensor, n: int, d: int
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return queries and keys, [b, h + n, s, d], and values [b, n, s, d]."""
        if not getattr(attn, "fuse_attention_qkv", False):
            queries, keys, values = (linear(part, normed) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
            return heads(paddle.concat([queries, keys], axis=-1), n * (self.group + 1), d), heads(values, n, d)
        # for each key/value head: its queries, its key, its value
        mixed = linear(attn.qkv_proj, normed).reshape([0, 0, n, (self.group + 2) * d])
        queries, keys, values = paddle.split(mixed, [self.group * d, d, d], axis=-1)
        queries, keys = heads(queries, n * self.group, d), keys.transpose([0, 2, 1, 3])
        return paddle.concat([queries, keys], axis=1), values.transpose([0, 2, 1, 3])

    def gated(self, mlp: paddle.nn.Layer, normed: paddle.Tensor) -> paddle.Tensor:
        """Apply the MLP; paddle2onnx has no swiglu, so that the product is written out."""
        if getattr(mlp, "fuse_attention_ffn", False):
            gate, up = paddle.split(linear(mlp.gate_up_fused_proj, normed), 2, axis=-1)
        else:
            gate, up = linear(mlp.gate_proj, normed), linear(mlp.up_proj, normed)
        return linear(mlp.down_proj, self.activated(mlp, gate) * up)

    def activated(self, mlp: paddle.nn.Layer, gate: paddle.Tensor) -> paddle.Tensor:
        """Apply the MLP's activation."""
        return silu(gate)

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.normed(self.body.norm, hidden)

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        logits = few_logits(self.decoder.head, hidden)
        return self.decoder.logits(hidden) if logits is None else logits  # tracing gives subclasses a wrong super()

    def normed(self, layer: paddle.nn.Layer, hidden: paddle.Tensor) -> paddle.Tensor:
        """Apply one of the model's norms."""
        return rms_norm(layer, hidden)


class MistralStep(LlamaStep):
    """One call of a Mistral model, whose config names the activation."""

    def activated(self, mlp: paddle.nn.Layer, gate: paddle.Tensor) -> paddle.Tensor:
        return mlp.act_fn(gate)


class GemmaStep(LlamaStep):
    """One call of a Gemma model: scaled embeddings, and the gelu that its config names."""

    def embedded(self, input_ids: paddle.Tensor) -> paddle.Tensor:
        return self.body.embed_tokens(input_ids) * self.config.hidden_size**0.5

    def normed(self, layer: paddle.nn.Layer, hidden: paddle.Tensor) -> paddle.Tensor:
        return layer(hidden)  # its weights count from 1

    def activated(self, mlp: paddle.nn.Layer, gate: paddle.Tensor) -> paddle.Tensor:
        return gelu(gate, tanh_form=self.config.hidden_activation == gemma_activation.DEFAULT)
