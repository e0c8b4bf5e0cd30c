"""Quantized layers -> the float weights that they stand for, which compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.models.quantized.origin import float_base
from paddlesft.models.weights import NewTensor


def dequantized_weights(
    model: nn.Layer, state: Mapping[str, paddle.Tensor], directory: str | Path
) -> dict[str, NewTensor]:
    """Describe a model's weights with those of its quantized layers as float32; each is computed when it is read.

    A layer that scales and shifts its input, x' = (x + shift) * scale, becomes one that does not: diag(scale) W, and
    the shift goes into the bias.

    Args:
        model: a causal language model with quantized layers.
        state: its tensors by name, each once.
        directory: where it was loaded from, for messages.

    Returns:
        Tensors by the names of a float model.

    Raises:
        ModelDirectoryError: layers round their activations, or shift them without a bias that could take the shift.
    """
    layers = quantized_layers(model)
    _refuse(directory, [name for name, layer in layers.items() if layer.activations], "round their activations")
    homeless = [name for name, layer in layers.items() if layer.bias is None and _shifts(layer)]
    _refuse(directory, homeless, "shift their inputs and have no bias to take that")
    weights = {}
    for name, tensor in state.items():
        layer = layers.get(name.rpartition(".")[0])
        if layer is None or (name.endswith(".bias") and not _shifts(layer)):
            weights[name] = NewTensor.of(tensor)
    for name, layer in layers.items():
        shape = (layer.in_features, layer.out_features)
        weights[f"{name}.weight"] = NewTensor("F32", shape, lambda layer=layer: layer.dequantized().numpy())
        if _shifts(layer):
            weights[f"{name}.bias"] = NewTensor("F32", shape[1:], lambda layer=layer: _shifted_bias(layer))
    return weights


def _shifts(layer: QuantizedLinear) -> bool:
    return layer.reshaped_input and bool((layer.input_shift != 0).any())


def _shifted_bias(layer: QuantizedLinear) -> np.ndarray:
    return (layer.bias.astype("float32") + paddle.matmul(layer.input_shift, layer.dequantized())).numpy()


def _refuse(directory: str | Path, names: list[str], what: str) -> None:
    if names:
        base = float_base(directory)
        named = base.get("path") or base.get("name")
        raise ModelDirectoryError(
            f"{directory}: {len(names)} layers {what} ({names[0]}), which no float weights can stand for. Use the "
            f"float model that it was made from{f': {named}' if named else ''}."
        )
