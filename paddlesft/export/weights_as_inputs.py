"""A step whose weights are arguments: what is traced is small, whatever the model's size.

A converter that reads weights with the program holds them in memory several times, and one file of ONNX (protobuf) ends
at 2 GB. Here the program knows only the weights' names; whoever writes them reads them from the model.

Codes of quantized weights are not computed with in the trace: such a layer multiplies by a matrix that stands for its
weight, and whoever writes the graph says what that matrix is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import paddle
from paddle import nn
from paddle.static import InputSpec

from paddlesft.export.static_graph import input_specs
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.quantized.formats import scale_of
from paddlesft.models.quantized.linear import ACT_SCALE, INPUT_SCALE, INPUT_SHIFT, OUTLIER, STATIC, QuantizedLinear
from paddlesft.models.steps import DecoderStep

STANDS_FOR_CODES = ".quant_weight"  # ends the name of a matrix [i, o] of codes as they are, to be multiplied exactly
STANDS_FOR_WEIGHT = ".weight_of_codes"  # ends the name of a matrix [i, o]: the codes times their scales
STANDS_FOR_OUTLIERS = ".outliers_of_codes"  # ends the name of a matrix [i, o]: the codes in float32


class WeightsAsInputs(nn.Layer):
    """``DecoderStep.forward`` with one more argument: the list of its weights.

    Args:
        step: in evaluation mode; ``restore`` gives it its weights back.

    Attributes:
        tensors: the weights by name; those that two layers share are there once.
        quantized: quantized layers by the name of what stands for their weights.
    """

    def __init__(self, step: DecoderStep) -> None:
        super().__init__()
        self.step = step
        self.tensors: dict[str, paddle.Tensor] = {}
        self.quantized: dict[str, QuantizedLinear] = {}
        self._specs: list[InputSpec] = []
        self._places: list[tuple[nn.Layer, str, int]] = []
        self._products: list[tuple[QuantizedLinear, list[int]]] = []
        known: dict[int, int] = {}
        codes = {id(layer) for layer in quantized_layers(step).values()}
        for path, layer in step.named_sublayers():
            path = path.removeprefix("lm.")
            held = {**layer._parameters, **(_smoothing(layer) if id(layer) in codes else {})}
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    known[id(tensor)] = self._add(f"{path}.{name}", tensor.shape, str(tensor.dtype).split(".")[-1])
                    self.tensors[f"{path}.{name}"] = tensor
                self._places.append((layer, name, known[id(tensor)]))
            if id(layer) in codes:
                self._add_codes(path, layer)

    def _add(self, name: str, shape: Sequence[int], dtype: str) -> int:
        self._specs.append(InputSpec(list(shape), dtype, name))
        return len(self._specs) - 1

    def _add_codes(self, path: str, layer: QuantizedLinear) -> None:
        size = [layer.in_features, layer.out_features]
        ends = [STANDS_FOR_WEIGHT]
        if layer.activations:
            ends = [STANDS_FOR_CODES] if layer.activations == STATIC else [STANDS_FOR_CODES, STANDS_FOR_OUTLIERS]
        numbers = [self._add(path + end, size, "float32") for end in ends]
        self.quantized.update((path + end, layer) for end in ends)
        if layer.activations:
            name = f"{path}.quant_scale"
            self.tensors[name] = scale_of(layer.stored, layer.how)[0]
            numbers.append(self._add(name, [layer.out_features], "float32"))
        self._products.append((layer, numbers))

    def specs(self) -> list[Any]:
        """Return the shapes of ``forward``'s arguments."""
        return [*input_specs(self.step), self._specs]

    def forward(
        self,
        input_ids: paddle.Tensor,
        position_ids: paddle.Tensor,
        visible: paddle.Tensor,
        last: paddle.Tensor,
        past: Sequence[paddle.Tensor],
        weights: Sequence[paddle.Tensor],
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Compute the step with the given weights; see ``DecoderStep.forward``."""
        self._put(weights)
        return self.step(input_ids, position_ids, visible, last, past)

    @paddle.jit.not_to_static
    def _put(self, weights: Sequence[paddle.Tensor]) -> None:
        """Let instance attributes hide parameters and methods of the same name."""
        for layer, name, number in self._places:
            layer.__dict__[name] = weights[number]
        for layer, numbers in self._products:
            product = {"": _times_weight, STATIC: _times_codes}.get(layer.activations, _times_codes_and_outliers)
            layer.__dict__["plain"] = partial(product, layer, *(weights[number] for number in numbers))

    def restore(self) -> None:
        """Give the step its own weights back."""
        for layer, name, _ in self._places:
            layer.__dict__.pop(name, None)
        for layer, _ in self._products:
            layer.__dict__.pop("plain", None)


def _smoothing(layer: QuantizedLinear) -> dict[str, paddle.Tensor]:
    return {name: layer._buffers[name] for name in (ACT_SCALE, INPUT_SHIFT, INPUT_SCALE) if name in layer._buffers}


def _times_weight(layer: QuantizedLinear, weight: paddle.Tensor, x: paddle.Tensor) -> paddle.Tensor:
    return paddle.matmul(x, weight)


def _times_codes(layer: QuantizedLinear, codes: paddle.Tensor, scale: paddle.Tensor, x: paddle.Tensor) -> paddle.Tensor:
    step = layer.act_scale
    return paddle.matmul(layer.rounded(x, step), codes) * (step * scale)


def _times_codes_and_outliers(
    layer: QuantizedLinear, codes: paddle.Tensor, outliers: paddle.Tensor, scale: paddle.Tensor, x: paddle.Tensor
) -> paddle.Tensor:
    """As ``QuantizedLinear`` computes LLM.int8(), with the outliers of all columns: a graph has no sizes of data."""
    rest = x * (x.abs() <= OUTLIER).astype(x.dtype)
    largest = rest.abs().max(axis=-1, keepdim=True)
    step = (largest + (largest == 0).astype(x.dtype)) / 127.0
    return (paddle.matmul(layer.rounded(rest, step), codes) * step + paddle.matmul(x - rest, outliers)) * scale
