"""A Linear layer that keeps its weight quantized and computes with plain operations, on any device; see ``kernels``.

Shape legend: n tokens, i inputs, o outputs, c chosen inputs. The numbers are those of the dequantized weight:
``quantize`` decides what is lost, this layer loses nothing more. Of float weights there is one block of rows at a time;
the whole one only where x has 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from paddlesft.errors import ConfigError, ModelDirectoryError
from paddlesft.models.quantized.formats import (
    INTEGERS,
    WEIGHT,
    WeightFormat,
    dequantize,
    quantize,
    row_blocks,
    rows_of,
    scale_of,
)
from paddlesft.models.quantized.kernels import Kernel, kernel_for

ACT_SCALE, INPUT_SHIFT, INPUT_SCALE = "act_scale", "input_shift", "input_scale"
STATIC, DYNAMIC = "static", "dynamic"
LARGEST_ACTIVATION = 127
OUTLIER = 6.0  # of the LLM.int8() paper, section 3.2
EXACT_INPUTS = 2**24 // (LARGEST_ACTIVATION * 128)  # 1032: float32 holds every sum of so many products of codes


def check_activations(activations: str, how: WeightFormat) -> None:
    """Refuse activations of 8 bits where the scale of a weight cannot follow the product of integers.

    Raises:
        ModelDirectoryError: as said, or no such way of rounding activations exists.
    """
    if activations not in ("", STATIC, DYNAMIC):
        raise ModelDirectoryError(
            f"activations {activations!r} are unknown: allowed are {STATIC!r}, {DYNAMIC!r} and '' (not rounded)."
        )
    if activations and (how.name not in INTEGERS or how.group_size):
        raise ModelDirectoryError(
            f"activations of 8 bits need weights of {' or '.join(INTEGERS)} with one scale for each output "
            f"(group_size 0), not {how.name} with group_size {how.group_size}."
        )


class QuantizedLinear(nn.Layer):
    """y = x W + b with W stored as codes and scales; optionally with activations of 8 bits (A8W8, LLM.int8()).

    Args:
        inputs: i.
        outputs: o.
        how: format of the weight.
        bias: whether there is a bias.
        activations: how the input is rounded to 8 bits; empty: not at all. ``static``: with the scale ``act_scale``,
            which calibration has found. ``dynamic``: LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339): every token
            by its own largest number; numbers beyond ``OUTLIER`` stay as they are. The paper leaves an input as it is
            in all tokens of a call where it is beyond in one; here each token is settled alone, so that it gives the
            same whatever else is in the call.
        reshaped_input: the input is shifted and scaled first, x' = (x + input_shift) * input_scale, of which the weight
            and bias take the opposite (SmoothQuant, arXiv:2211.10438; Outlier Suppression+, arXiv:2304.09145).

    Raises:
        ModelDirectoryError: see ``check_activations``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        how: WeightFormat,
        bias: bool = False,
        activations: str = "",
        reshaped_input: bool = False,
    ) -> None:
        super().__init__()
        check_activations(activations, how)
        self._kernel: Kernel | None = None  # whose layout the codes have; None: that in which they are stored
        self.in_features, self.out_features, self.how = inputs, outputs, how
        self.activations, self.reshaped_input = activations, reshaped_input
        for name, (shape, dtype) in how.shapes(inputs, outputs).items():
            self.register_buffer(name, paddle.zeros(shape, dtype=dtype))
        if activations == STATIC:
            self.register_buffer(ACT_SCALE, paddle.ones([1], dtype="float32"))
        if reshaped_input:
            self.register_buffer(INPUT_SHIFT, paddle.zeros([inputs], dtype="float32"))
            self.register_buffer(INPUT_SCALE, paddle.ones([inputs], dtype="float32"))
        self.bias = self.create_parameter([outputs], dtype="float32", is_bias=True) if bias else None
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
        self._restore_codes()
        for name, tensor in stored.items():
            getattr(self, name).set_value(tensor)

    def share(self, other: QuantizedLinear) -> None:
        """Let this layer hold the tensors of another one of its kind in the place of its own."""
        other._restore_codes()
        self._kernel = None
        for name in self._buffers:
            self._buffers[name] = getattr(other, name)
        self.bias = other.bias

    @property
    def stored(self) -> dict[str, paddle.Tensor]:
        """The tensors of the quantized weight, by name."""
        self._restore_codes()
        return {WEIGHT: getattr(self, WEIGHT), **self.stored_scales}

    @property
    def stored_scales(self) -> dict[str, paddle.Tensor]:
        """The tensors of the quantized weight without the codes, by name."""
        names = self.how.shapes(self.in_features, self.out_features)
        return {name: getattr(self, name) for name in names if name != WEIGHT}

    def arranged(self, kernel: Kernel) -> paddle.Tensor:
        """Return the codes as a kernel wants them; they take the place of the stored ones until those are asked for."""
        if self._kernel is not kernel:
            self._restore_codes()
            self._put_codes(kernel.arrange(self, getattr(self, WEIGHT).numpy()))
            self._kernel = kernel
        return getattr(self, WEIGHT)

    def _restore_codes(self) -> None:
        if self._kernel is not None:
            self._put_codes(self._kernel.restore(self, getattr(self, WEIGHT).numpy()))
            self._kernel = None

    def _put_codes(self, codes: np.ndarray) -> None:
        self._buffers[WEIGHT] = paddle.to_tensor(codes, place=getattr(self, WEIGHT).place)

    def _state_dict_impl(self, *arguments: Any, **more: Any) -> Any:
        self._restore_codes()
        return super()._state_dict_impl(*arguments, **more)

    def dequantized(self) -> paddle.Tensor:
        """Return the weight that the codes stand for, float32 [i, o], for inputs that are not reshaped."""
        weight = dequantize(self.stored, self.how, self.in_features)
        return weight * self.input_scale.unsqueeze(1) if self.reshaped_input else weight

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Compute the layer: [..., i] -> [..., o], in the type of ``x``.

        Raises:
            ConfigError: activations are rounded, and a gradient would have to pass.
        """
        if paddle.is_autocast_enabled():  # which would round codes and scales, one operation after the other
            with paddle.amp.auto_cast(False):
                return self.forward(x.astype(paddle.get_autocast_gpu_dtype()))
        if self.reshaped_input:
            x = ((x.astype("float32") + self.input_shift) * self.input_scale).astype(x.dtype)
        kernel = kernel_for(self, x)
        y = self.plain(x) if kernel is None else kernel.run(self, x, self.arranged(kernel))
        return y if self.bias is None else y + self.bias.astype(y.dtype)

    def plain(self, x: paddle.Tensor) -> paddle.Tensor:
        """Compute [..., i] -> [..., o] by plain operations, without reshaping the input and without bias."""
        self._restore_codes()
        if self.activations:
            return self._with_rounded_activations(x)
        return _Product.apply(x, self)

    def _scaled_after(self, dtype: Any) -> bool:
        """Whether the scales are left to the output; float16 might overflow before they come."""
        return self.how.name in INTEGERS and not self.how.group_size and dtype != paddle.float16

    def _blocks(self, dtype: Any, start: int, stop: int) -> Iterator[tuple[int, int, paddle.Tensor]]:
        """Yield first input, last input + 1 and rows of what ``x`` is multiplied by, block by block."""
        self._restore_codes()
        codes = getattr(self, WEIGHT)
        scales = None if self._scaled_after(dtype) else scale_of(self.stored, self.how)
        for first, last in row_blocks(codes, start, stop):
            yield first, last, rows_of(codes, self.how, first, last, self.in_features, scales).astype(dtype)

    def _times_factor(self, x: paddle.Tensor, start: int, stop: int) -> paddle.Tensor:
        """Multiply [n, stop - start], of the type of a float weight, by these rows of the factor."""
        if x.dtype in (paddle.float16, paddle.bfloat16):  # 16 bits for the sum of each block would lose digits
            return paddle.matmul(x, paddle.concat([rows for _, _, rows in self._blocks(x.dtype, start, stop)]))
        y = None
        for first, last, rows in self._blocks(x.dtype, start, stop):
            part = x[:, first - start : last - start]
            y = paddle.matmul(part, rows) if y is None else y.addmm_(part, rows)
        return y

    def _times_transposed(self, gradient: paddle.Tensor) -> paddle.Tensor:
        """Multiply [n, o] by the transposed factor."""
        blocks = self._blocks(gradient.dtype, 0, self.in_features)
        return paddle.concat([paddle.matmul(gradient, rows, transpose_y=True) for _, _, rows in blocks], axis=1)

    def _apply(self, func: Any, device: Any, dtype: Any, blocking: Any, include_sublayers: bool = True) -> None:
        """Let ``to`` and its kin change the device only: another type would destroy codes and round scales."""
        super()._apply(func, device, None, blocking, include_sublayers)

    def _with_rounded_activations(self, x: paddle.Tensor) -> paddle.Tensor:
        if paddle.is_grad_enabled() and not x.stop_gradient:  # rounding would let zeros pass without a word
            raise ConfigError(
                "This layer rounds its activations (a8w8, llm.int8), which lets no gradient pass. Train on a base with "
                "quantized weights only (weight_only_int8, weight_only_int4, nf4, fp4); to evaluate, compute under "
                "paddle.no_grad()."
            )
        scale, dtype, x = scale_of(self.stored, self.how)[0], x.dtype, x.astype("float32")
        if self.activations == STATIC:
            step = self.act_scale.astype("float32")
            return (self._integer_product(self.rounded(x, step)) * (step * scale)).astype(dtype)
        rows = x.reshape([-1, self.in_features])
        beyond = rows.abs() > OUTLIER
        columns = paddle.nonzero(beyond.any(axis=0)).flatten()
        rest = paddle.where(beyond, paddle.zeros_like(rows), rows) if columns.shape[0] else rows
        largest = rest.abs().max(axis=1, keepdim=True)
        step = paddle.where(largest == 0, paddle.ones_like(largest), largest) / float(LARGEST_ACTIVATION)
        y = self._integer_product(self.rounded(rest, step)) * step
        if columns.shape[0]:
            y = y + self._times_chosen(paddle.index_select(rows - rest, columns, axis=1), columns)
        return (y * scale).reshape([*x.shape[:-1], self.out_features]).astype(dtype)

    @staticmethod
    def rounded(x: paddle.Tensor, step: paddle.Tensor) -> paddle.Tensor:
        """Return the codes of an input for a given step, in its own type."""
        return paddle.clip(paddle.round(x / step), -LARGEST_ACTIVATION, LARGEST_ACTIVATION)

    def _times_chosen(self, x: paddle.Tensor, columns: paddle.Tensor) -> paddle.Tensor:
        """Multiply [n, c] by the rows of codes that c inputs have."""
        codes = getattr(self, WEIGHT)
        if self.how.bits == 8:
            return paddle.matmul(x, paddle.gather(codes, columns).astype("float32"))
        values = rows_of(codes, self.how, 0, self.in_features, self.in_features)
        return paddle.matmul(x, paddle.gather(values, columns))

    def _integer_product(self, codes: paddle.Tensor) -> paddle.Tensor:
        """Multiply codes [..., i] by those of the weight, exactly until the sum becomes float32."""
        rows = codes.reshape([codes.size // self.in_features, self.in_features])
        total = None
        for start in range(0, self.in_features, EXACT_INPUTS):
            stop = min(start + EXACT_INPUTS, self.in_features)
            part = self._times_factor(rows[:, start:stop], start, stop)
            if self.in_features > EXACT_INPUTS:
                part = part.astype("int32")
            total = part if total is None else total + part
        return total.astype("float32").reshape([*codes.shape[:-1], self.out_features])

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
        rows = x.reshape([x.size // layer.in_features, layer.in_features])
        y = layer._times_factor(rows, 0, layer.in_features)
        if layer._scaled_after(x.dtype):  # in here, so that no unscaled copy is kept for the backward pass
            y = y * scale_of(layer.stored, layer.how)[0].astype(x.dtype)
        return y.reshape([*x.shape[:-1], layer.out_features])

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        layer = ctx.layer
        rows = gradient.reshape([gradient.size // layer.out_features, layer.out_features])
        if layer._scaled_after(rows.dtype):
            rows = rows * scale_of(layer.stored, layer.how)[0].astype(rows.dtype)
        found = layer._times_transposed(rows).reshape([*gradient.shape[:-1], layer.in_features])
        return found.astype(ctx.dtype)
