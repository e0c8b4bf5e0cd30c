"""Formats of quantized weights: a few bits for each number, and a scale for each group of numbers.

Shape legend: i inputs and o outputs of a Linear, g groups of inputs that share a scale.

int8 and int4 are symmetric: weight = code * scale with codes from -128 to 127 and from -8 to 7; scales are chosen such
that the largest number has the largest code, as PaddleSlim chooses them. nf4 and fp4 look the value of a code up in a
table of 16 (Dettmers et al. 2023, arXiv:2305.14314, appendix E for nf4; fp4 is sign, two bits of exponent, one of
mantissa): weight = table[code] * scale. Codes of four bits stand in pairs: the input with the even number has the lower
half of the byte.

Double quantization (section 3 of the same paper) stores the scales themselves in 8 bits: the mean is taken off, and 256
neighbours, or another number of them, share a scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import paddle

from paddlesft.errors import ModelDirectoryError

INTEGERS = {"int8": 127, "int4": 7}  # name -> largest code
# Quantiles of a normal distribution, scaled to [-1, 1], with 0 among them.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(sign * value / 12.0 for sign in (1, -1) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
TABLES = {"nf4": NF4, "fp4": FP4}
FORMATS = (*INTEGERS, *TABLES)
WEIGHT, SCALE = "quant_weight", "quant_scale"
SCALE_CODES, SCALE_SCALE, SCALE_OFFSET = "qquant_scale", "double_quant_scale", "quant_scale_offset"


@dataclass(frozen=True)
class WeightFormat:
    """How the weight of one Linear is stored.

    Attributes:
        name: one of ``FORMATS``.
        group_size: neighbouring inputs that share a scale; 0: all inputs of an output do.
        double_quantization: the scales are quantized too.
        scales_per_block: neighbouring scales that share a scale then.
    """

    name: str
    group_size: int = 0
    double_quantization: bool = False
    scales_per_block: int = 256

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            raise ModelDirectoryError(f"weight format {self.name!r} is not one of {', '.join(FORMATS)}.")
        least = 1 if self.name in TABLES else 0
        if self.group_size < least:
            whole = "" if least else " (0: one scale for each output)"
            raise ModelDirectoryError(
                f"group_size {self.group_size} is impossible for {self.name}: allowed is a whole number from {least} "
                f"up{whole}."
            )
        if self.scales_per_block < 1:
            raise ModelDirectoryError(
                f"{self.scales_per_block} scales per block are impossible: allowed is a whole number from 1 up."
            )

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return 8 if self.name == "int8" else 4

    def groups(self, inputs: int) -> int:
        """Return the number of groups of so many inputs; the last may be smaller."""
        return -(-inputs // self.group_size) if self.group_size else 1

    def shapes(self, inputs: int, outputs: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype of each stored tensor, by its name."""
        rows = inputs if self.bits == 8 else -(-inputs // 2)
        stored: dict[str, tuple[tuple[int, ...], str]] = {
            WEIGHT: ((rows, outputs), "int8" if self.bits == 8 else "uint8")
        }
        groups = self.groups(inputs)
        if not self.double_quantization:
            return stored | {SCALE: ((groups, outputs), "float32")}
        blocks = -(-groups * outputs // self.scales_per_block)
        return stored | {
            SCALE_CODES: ((groups, outputs), "int8"),
            SCALE_SCALE: ((blocks,), "float32"),
            SCALE_OFFSET: ((1,), "float32"),
        }

    def nbytes(self, inputs: int, outputs: int) -> int:
        """Return the bytes of a weight of this size."""
        return sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.shapes(inputs, outputs).values()
        )


def quantize(weight: paddle.Tensor, how: WeightFormat) -> dict[str, paddle.Tensor]:
    """Round a weight to the nearest values of a format.

    Args:
        weight: [i, o] of any float type.
        how: the format.

    Returns:
        The stored tensors by name, see ``WeightFormat.shapes``.
    """
    with paddle.no_grad():
        return encode(weight, scales_of(weight, how), how)


def scales_of(weight: paddle.Tensor, how: WeightFormat) -> paddle.Tensor:
    """Return the scales that let the largest number of each group be its format's largest value, float32 [g, o]."""
    groups = _in_groups(weight.astype("float32"), how)
    return groups.abs().max(axis=1) / float(INTEGERS.get(how.name, 1))


def encode(weight: paddle.Tensor, scales: paddle.Tensor, how: WeightFormat) -> dict[str, paddle.Tensor]:
    """Round a weight to codes for given scales.

    Args:
        weight: [i, o] of any float type.
        scales: float32 [g, o].
        how: the format.

    Returns:
        As ``quantize``.
    """
    stored_scales = _store_scales(scales, how)
    scales = scale_of(stored_scales, how)  # as they will be read: the codes make up for their rounding
    wide = _spread(scales, weight.shape[0], how)
    units = weight.astype("float32") / paddle.where(wide == 0, paddle.ones_like(wide), wide)
    if how.name in INTEGERS:
        largest = INTEGERS[how.name]
        codes = paddle.clip(paddle.round(units), -largest - 1, largest).astype("int32")
        if how.bits == 8:
            return {WEIGHT: codes.astype("int8"), **stored_scales}
        codes = codes + 8  # packed without sign
    else:
        order = np.argsort(TABLES[how.name], kind="stable")
        table = np.asarray(TABLES[how.name], dtype=np.float32)[order]
        between = paddle.to_tensor((table[1:] + table[:-1]) / 2)
        found = paddle.searchsorted(between, units.reshape([-1]), right=False).reshape(units.shape)
        codes = paddle.gather(paddle.to_tensor(order.astype(np.int32)), found.reshape([-1])).reshape(units.shape)
    return {WEIGHT: pack(codes), **stored_scales}


def dequantize(stored: Mapping[str, paddle.Tensor], how: WeightFormat, inputs: int) -> paddle.Tensor:
    """Return the weight that stored tensors stand for, float32 [i, o]."""
    scales = scale_of(stored, how)
    blocks = row_blocks(stored[WEIGHT], 0, inputs)
    parts = [rows_of(stored[WEIGHT], how, start, stop, inputs, scales) for start, stop in blocks]
    return parts[0] if len(parts) == 1 else paddle.concat(parts)


def row_blocks(codes: paddle.Tensor, start: int, stop: int) -> list[tuple[int, int]]:
    """Divide inputs into blocks that are dequantized one by one.

    Blocks of 2 MB in float32 stay in the caches of a CPU, and what took one serves the next without a page fault; that
    is ten times as fast as the whole weight at once. A GPU gets larger ones: there, calls are what costs.

    Args:
        codes: of the weight.
        start, stop: the inputs; ``start`` is even.

    Returns:
        First and last + 1 of each block; all begin with an even number.
    """
    numbers = 2**24 if paddle.is_compiled_with_cuda() and codes.place.is_gpu_place() else 2**19
    rows = max(numbers // codes.shape[1] // 2 * 2, 2)
    return [(first, min(first + rows, stop)) for first in range(start, stop, rows)]


def rows_of(
    codes: paddle.Tensor, how: WeightFormat, start: int, stop: int, inputs: int, scales: paddle.Tensor | None = None
) -> paddle.Tensor:
    """Return some rows of a weight.

    Args:
        codes: all of them.
        how: their format.
        start: first input, even.
        stop: last input + 1.
        inputs: of the whole weight.
        scales: float32 [g, o]; None: what the codes stand for before they are scaled.

    Returns:
        float32 [stop - start, o].
    """
    if how.bits == 8:
        values = codes[start:stop].astype("float32")
    else:
        pairs = codes[start // 2 : (stop + 1) // 2]
        low, high = _halves(pairs) if how.name in INTEGERS else _looked_up(pairs, how)
        values = paddle.stack([low, high], axis=1).reshape([-1, codes.shape[1]])
        if (stop - start) % 2:
            values = values[: stop - start]
    if scales is None:
        return values
    groups = paddle.arange(start, stop) // (how.group_size or inputs)
    return values * paddle.gather(scales, groups)  # whole rows: broadcasting is twenty times slower on a CPU


def _halves(pairs: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return the signed codes in the lower and upper halves of bytes, in float32: on a CPU faster than operations on
    bits, and as exact.
    """
    both = pairs.astype("float32")
    high = paddle.floor(both * 0.0625)
    return both - high.scale(16.0, 8.0), high - 8.0


def _looked_up(pairs: paddle.Tensor, how: WeightFormat) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return the values of the codes in the lower and upper halves of bytes: each byte is looked up as it is."""
    table = paddle.to_tensor(_values_of_bytes(how.name), place=pairs.place)
    both = paddle.gather(table, pairs.astype("int32").reshape([-1])).reshape([*pairs.shape, 2])
    return both[:, :, 0], both[:, :, 1]


@cache
def _values_of_bytes(name: str) -> np.ndarray:
    table, every_byte = np.asarray(TABLES[name], dtype=np.float32), np.arange(256)
    return np.stack([table[every_byte % 16], table[every_byte // 16]], axis=1)


def scale_of(stored: Mapping[str, paddle.Tensor], how: WeightFormat) -> paddle.Tensor:
    """Return the scales of stored tensors, float32 [g, o]."""
    if not how.double_quantization:
        return stored[SCALE]
    codes = stored[SCALE_CODES]
    flat = codes.reshape([-1]).astype("float32")
    steps = paddle.repeat_interleave(stored[SCALE_SCALE], how.scales_per_block)[: flat.shape[0]]
    return (flat * steps + stored[SCALE_OFFSET]).reshape(codes.shape)


def pack(codes: paddle.Tensor) -> paddle.Tensor:
    """Put codes from 0 to 15, integers [i, o], in pairs: uint8 [ceil(i / 2), o]."""
    codes = codes.astype("int32")
    if codes.shape[0] % 2:
        codes = paddle.concat([codes, paddle.zeros([1, codes.shape[1]], dtype="int32")])
    return (codes[0::2] + codes[1::2] * 16).astype("uint8")


def _in_groups(weight: paddle.Tensor, how: WeightFormat) -> paddle.Tensor:
    """[i, o] -> [g, group size, o], filled up with zeros."""
    inputs, outputs = weight.shape
    size = how.group_size or inputs
    missing = how.groups(inputs) * size - inputs
    if missing:
        weight = paddle.concat([weight, paddle.zeros([missing, outputs], dtype=weight.dtype)])
    return weight.reshape([-1, size, outputs])


def _spread(scales: paddle.Tensor, inputs: int, how: WeightFormat) -> paddle.Tensor:
    """[g, o] -> [i, o], or [1, o] where all inputs share a scale."""
    if not how.group_size:
        return scales
    return paddle.repeat_interleave(scales, how.group_size, axis=0)[:inputs]


def _store_scales(scales: paddle.Tensor, how: WeightFormat) -> dict[str, paddle.Tensor]:
    if not how.double_quantization:
        return {SCALE: scales}
    flat, size = scales.reshape([-1]), how.scales_per_block
    offset = flat.astype("float64").mean().astype("float32").reshape([1])  # whatever order a device adds in
    blocks = -(-flat.shape[0] // size)
    centred = paddle.concat([flat - offset, paddle.zeros([blocks * size - flat.shape[0]])]).reshape([blocks, size])
    largest = centred.abs().max(axis=1)
    steps = paddle.where(largest == 0, paddle.ones_like(largest), largest) / 127.0
    codes = paddle.clip(paddle.round(centred / steps.unsqueeze(1)), -127, 127)
    codes = codes.reshape([-1])[: flat.shape[0]].reshape(scales.shape).astype("int8")
    return {SCALE_CODES: codes, SCALE_SCALE: steps, SCALE_OFFSET: offset}
