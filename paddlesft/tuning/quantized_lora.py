"""LoRA beside Linear layers whose weights are quantized: QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314).

PaddleNLP's ``LoRAModel`` (3.0.0b4) knows quantized layers of its own, but only if an import succeeds whose failure it
hides, and none of ours. The adapter's weights have the names, sizes and first values that they have beside a float
Linear, so that its files are those of LoRA.

Shape legend: i inputs and o outputs of a Linear, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddlenlp.peft import LoRAConfig, LoRAModel

from paddlesft.errors import ConfigError
from paddlesft.models.quantized.directory import LayerRecord, put_layer, quantized_layers
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.models.quantized.on_load import ALGORITHMS


class QuantizedLoRALinear(QuantizedLinear):
    """y = x W + b + s dropout(x) A B with W quantized and frozen, A [i, r] and B [r, o] trained.

    Args:
        base: the layer whose tensors are taken over, not copied.
        config: r, alpha, dropout, ``rslora`` and ``lora_plus_scale``.
    """

    def __init__(self, base: QuantizedLinear, config: LoRAConfig) -> None:
        inputs, outputs, biased = base.in_features, base.out_features, base.bias is not None
        super().__init__(inputs, outputs, base.how, biased, base.activations, base.reshaped_input)
        self.share(base)
        self.dropout = config.lora_dropout
        self.scaling = config.lora_alpha / (math.sqrt(config.r) if config.rslora else config.r)
        zero = nn.initializer.Constant(0.0)  # A gets its values from the seed and its name, see ``add_lora``
        self.lora_A = self.create_parameter([inputs, config.r], default_initializer=zero)
        self.lora_B = self.create_parameter(
            [config.r, outputs],
            attr=paddle.ParamAttr(initializer=zero, learning_rate=config.lora_plus_scale),
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Compute the layer with its adapter: [..., i] -> [..., o], in the type of ``x``."""
        kept = F.dropout(x, self.dropout, training=self.training) if self.dropout else x
        reduced = kept @ self.lora_A.astype(x.dtype) * self.scaling
        y = super().forward(x)
        return y + reduced.astype(y.dtype) @ self.lora_B.astype(y.dtype)


class MixedLoRAModel(LoRAModel):
    """``LoRAModel`` that knows quantized layers too."""

    def _find_and_replace_module(
        self, model: nn.Layer, module_name: str, lora_config: LoRAConfig, enable_lora: Any
    ) -> None:
        if module_name.endswith(".lora_dropout"):  # of an adapter put in just now, which GLM's patterns fit too
            return
        layer = model
        for part in module_name.split("."):
            layer = getattr(layer, part)
        if isinstance(layer, QuantizedLinear):
            put_layer(model, module_name, QuantizedLoRALinear(layer, lora_config))
        else:
            super()._find_and_replace_module(model, module_name, lora_config, enable_lora)

    def mark_only_lora_as_trainable(self) -> None:
        """Freeze everything but the adapters, and the biases that ``trainable_bias`` names."""
        super().mark_only_lora_as_trainable()
        for layer in quantized_layers(self.model).values():
            if isinstance(layer, QuantizedLoRALinear):
                layer.lora_A.stop_gradient = layer.lora_B.stop_gradient = False
                if layer.bias is not None:
                    layer.bias.stop_gradient = self.lora_config.trainable_bias not in ("lora", "all")


def refuse_rounded_activations(layers: Mapping[str, LayerRecord | QuantizedLinear]) -> None:
    """Refuse to train over a base through which no gradient passes.

    Args:
        layers: its quantized layers by name, or what its directory says of them.

    Raises:
        ConfigError: some of them round their activations.
    """
    rounded = [name for name, layer in layers.items() if layer.activations]
    if rounded:
        raise ConfigError(
            f"model_name_or_path: {len(rounded)} layers of this base round their activations (a8w8, llm.int8; first: "
            f"{rounded[0]}), which lets no gradient pass. Adapters are trained over weight-only formats: quantize the "
            f"float model to one of {', '.join(ALGORITHMS)} (paddlesft quantize), or give the float model itself and "
            "set weight_quantize_algo."
        )


def refuse_full_tuning(layers: Mapping[str, LayerRecord | QuantizedLinear]) -> None:
    """Refuse to train all weights of a base of which some are integers.

    Args:
        layers: its quantized layers by name, or what its directory says of them.

    Raises:
        ConfigError: there are some.
    """
    if layers:
        kinds = ", ".join(sorted({layer.how.name for layer in layers.values()}))
        raise ConfigError(
            f"model_name_or_path: {len(layers)} layers of this base are quantized ({kinds}); such weights cannot be "
            "trained. Set lora: true (QLoRA) or prefix_tuning: true to train an adapter over them, or give the float "
            "model to train all weights."
        )
