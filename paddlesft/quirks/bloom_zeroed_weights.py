"""A new BLOOM of PaddleNLP has zeros in every Linear that has a bias, which is all of them.

Seen with paddlenlp 3.0.0b4: ``BloomPreTrainedModel._init_weights`` zeroes ``weight`` where it means ``bias``. Such a
model computes the same for every input, and LoRA and Prefix-Tuning get no gradient at all, without an error. Loaded
weights are not touched by it.
"""

from __future__ import annotations

from typing import Any


def draw_weights(config: Any) -> None:
    """Let new BLOOM models start from normal weights and zero biases; called before a model is built."""
    from paddlenlp.transformers.bloom.modeling import BloomPreTrainedModel

    BloomPreTrainedModel._init_weights = _init_weights


def _init_weights(self: Any, layer: Any) -> None:
    import paddle

    if not isinstance(layer, paddle.nn.Linear | paddle.nn.Embedding):
        return
    weight, bias = layer.weight, getattr(layer, "bias", None)
    weight.set_value(paddle.normal(0.0, self.config.initializer_range, weight.shape).astype(weight.dtype))
    if bias is not None:
        bias.set_value(paddle.zeros_like(bias))
