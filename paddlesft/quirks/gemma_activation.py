"""PaddleNLP's Gemma computes the exact gelu whatever its config says; Gemma was trained with the tanh form.

Seen with paddlenlp 3.0.0b4 (``GemmaMLP.forward`` calls ``F.gelu`` and reads neither ``hidden_act`` nor
``hidden_activation``): logits of the published models are off in the third digit.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

DEFAULT = "gelu_pytorch_tanh"


def name_activation(config: Any) -> None:
    """Write into a config which gelu its model computes, where it does not say; see ``follow_activation``."""
    if getattr(config, "hidden_activation", None) is None:
        config.hidden_activation = DEFAULT


def follow_activation(model: Any) -> None:
    """Make a model compute the gelu that its config names: ``gelu_pytorch_tanh`` or ``gelu``."""
    from paddlenlp.transformers.gemma.modeling import GemmaMLP

    if model.config.hidden_activation == DEFAULT:
        for layer in model.sublayers():
            if isinstance(layer, GemmaMLP):
                layer.forward = MethodType(_tanh_forward, layer)


def _tanh_forward(layer: Any, x: Any) -> Any:
    import paddle.nn.functional as F

    return layer.down_proj(F.gelu(layer.gate_proj(x), approximate=True) * layer.up_proj(x))
