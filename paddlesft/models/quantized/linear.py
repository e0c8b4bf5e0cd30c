"""A Linear layer that keeps its weight quantized and computes with plain operations, on any device.

Shape legend: n tokens, i inputs, o outputs. The numbers are those of the dequantized weight: ``quantize`` decides what
is lost, this layer loses nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer

from paddlesft.models.quantized.formats import WEIGHT, WeightFormat, dequantize, quantize, scale_of, values_of

ACT_SCALE, INPUT_SHIFT, INPUT_SCALE = "act_scale", "input_shift", "input_scale"
LARGEST_ACTIVATION = 127


class QuantizedLinear(nn.Layer):
    """y = x W + b with W stored as codes and scales; optionally with activations of 8 bits (A8W8).

    Args:
        inputs: i.
        outputs: o.
        how: format of the weight.
        bias: whether there is a bias.
        activations: the input is rounded to 8 bits with the scale ``act_scale``, which calibration has found.
        reshaped_input: the input is shifted and scaled first, x' = (x + input_shift) * input_scale, of which the weight
            and bias take the opposite (SmoothQuant, arXiv:2211.10438; Outlier Suppression+, arXiv:2304.09145).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        how: WeightFormat,
        bias: bool = False,
        activations: bool = False,
        reshaped_input: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.how = inputs, outputs, how
        self.activations, self.reshaped_input = activations, reshaped_input
        for name, (shape, dtype) in how.shapes(inputs, outputs).items():
            self.register_buffer(name, paddle.zeros(shape, dtype=dtype))
        if activations:
            self.register_buffer(ACT_SCALE, paddle.ones([1]))
        if reshaped_input:
            self.register_buffer(INPUT_SHIFT, paddle.zeros([inputs]))
            self.register_buffer(INPUT_SCALE, paddle.ones([inputs]))
        self.bias = self.create_parameter([outputs], is_bias=True) if bias else None
        if bias:
            self.bias.stop_gradient = True

    @classmethod
    def of(cls, layer: nn.Layer, how: WeightFormat) -> QuantizedLinear:
        """Return a layer with the rounded weight of a Linear [i, o], and its bias."""
        inputs, outputs = layer.weight.shape
        made = cls(inputs, outputs, how, bias=layer.bias is not None)
        made.take(quantize(layer.weight, how))
        if layer.bias is not None:
            made.bias.set_value(layer.bias.astype(made.bias.dtype))
        return made

    def take(self, stored: Mapping[str, paddle.Tensor]) -> None:
        """Put stored tensors in place, by name."""
        for name, tensor in stored.items():
            getattr(self, name).set_value(tensor)

    @property
    def stored(self) -> dict[str, paddle.Tensor]:
        """The tensors of the quantized weight, by name."""
        return {name: getattr(self, name) for name in self.how.shapes(self.in_features, self.out_features)}

    def dequantized(self) -> paddle.Tensor:
        """Return the weight that the codes stand for, float32 [i, o], for inputs that are not reshaped."""
        weight = dequantize(self.stored, self.how, self.in_features)
        return weight * self.input_scale.unsqueeze(1) if self.reshaped_input else weight

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Compute the layer: [..., i] -> [..., o], in the type of ``x``."""
        if self.reshaped_input:
            x = (x + self.input_shift.astype(x.dtype)) * self.input_scale.astype(x.dtype)
        if self.activations:
            y = self._with_rounded_activations(x)
        elif self.how.group_size or self.how.bits == 4:
            y = _Product.apply(x, self)
        else:  # the scale belongs to the output: it need not touch the weight
            y = _Product.apply(x, self) * scale_of(self.stored, self.how)[0].astype(x.dtype)
        return y if self.bias is None else y + self.bias.astype(y.dtype)

    def factor(self, dtype: Any) -> paddle.Tensor:
        """Return what ``x`` is multiplied by: the weight, or its codes where the scale comes afterwards."""
        if self.how.group_size or self.how.bits == 4:
            return dequantize(self.stored, self.how, self.in_features).astype(dtype)
        return getattr(self, WEIGHT).astype(dtype)

    def _with_rounded_activations(self, x: paddle.Tensor) -> paddle.Tensor:
        """Multiply integers by integers; float32 holds their sums exactly up to 2^24, about 1040 largest products."""
        step = self.act_scale.astype("float32")
        codes = paddle.clip(paddle.round(x.astype("float32") / step), -LARGEST_ACTIVATION, LARGEST_ACTIVATION)
        product = F.linear(codes, values_of(getattr(self, WEIGHT), self.how, self.in_features))
        return (product * (step * scale_of(self.stored, self.how)[0])).astype(x.dtype)

    def extra_repr(self) -> str:
        """Say size and format where the model is printed."""
        group = f", group_size={self.how.group_size}" if self.how.group_size else ""
        return f"{self.in_features}, {self.out_features}, {self.how.name}{group}"


class _Product(PyLayer):
    """x times the layer's factor, which is made again for the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, layer: QuantizedLinear) -> paddle.Tensor:
        ctx.layer = layer
        ctx.dtype = x.dtype
        return F.linear(x, layer.factor(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(gradient, ctx.layer.factor(gradient.dtype), transpose_y=True).astype(ctx.dtype)
