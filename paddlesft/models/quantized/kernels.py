"""Paddle's CUDA kernels for quantized weights, each used where it has shown on the device that it computes the same.

No kernel here has run on a GPU yet: what is tested on a CPU is that codes are laid out as ``weight_quantize`` of Paddle
lays them out, which kernel is chosen, and that one which is missing or wrong gives way to plain operations.

Shape legend: i inputs and o outputs of a Linear, n tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from paddlesft.models.quantized.formats import scale_of

if TYPE_CHECKING:
    from paddlesft.models.quantized.linear import QuantizedLinear

logger = logging.getLogger("paddlesft")

LARGEST_ERROR = 0.02  # |y' - y| / |y| that scales and sums of 16 bits may cause
BLOCK, COLUMNS, QUARTERS = 64, {8: 2, 4: 4}, {8: 2, 4: 4}
ARCHITECTURES = (75, 80, 86, 89, 90, 100)  # compute capabilities that share the layout below
_agreed: dict[tuple[Any, ...], bool] = {}
_left_out: set[str] = set()


@dataclass(frozen=True)
class Kernel:
    """A kernel for some layers.

    Attributes:
        name: for messages.
        fits: whether it takes a layer; the device is asked too.
        arrange: stored codes -> codes as the kernel wants them.
        restore: the way back; needs the layer for its sizes.
        run: layer, x [..., i], arranged codes -> [..., o] without bias.
    """

    name: str
    fits: Callable[[QuantizedLinear], bool]
    arrange: Callable[[QuantizedLinear, np.ndarray], np.ndarray]
    restore: Callable[[QuantizedLinear, np.ndarray], np.ndarray]
    run: Callable[[QuantizedLinear, paddle.Tensor, paddle.Tensor], paddle.Tensor]


def kernel_for(layer: QuantizedLinear, x: paddle.Tensor) -> Kernel | None:
    """Return the kernel that computes a layer for an input; None: plain operations do.

    Training takes plain operations: their backward pass needs the codes as they are stored. The first layer of each
    size, format and type is computed both ways on random numbers; a kernel that is missing or wrong is left out with a
    line that names it.
    """
    if layer.training or x.dtype not in (paddle.float16, paddle.bfloat16) or not on_cuda(x):
        return None
    for kernel in KERNELS:
        if kernel.fits(layer):
            sizes = (layer.in_features, layer.out_features)
            key = (kernel.name, layer.how, layer.activations, sizes, x.dtype)
            if key not in _agreed:
                _agreed[key] = _agrees(kernel, layer, x)
            if _agreed[key]:
                return kernel
    return None


def on_cuda(x: paddle.Tensor) -> bool:
    """Whether a tensor is on an NVIDIA GPU."""
    return paddle.is_compiled_with_cuda() and x.place.is_gpu_place()


@paddle.no_grad()
def _agrees(kernel: Kernel, layer: QuantizedLinear, x: paddle.Tensor) -> bool:
    """Compare a kernel with plain operations for one token and for some, one input of which is an outlier."""
    random = np.random.default_rng(0).normal(size=(49, layer.in_features))
    random[0, 0] = random[7, 3] = 8.0
    try:
        numbers = paddle.to_tensor(random.astype(np.float32), place=x.place).astype(x.dtype)
        wanted = [layer.plain(rows).astype("float32") for rows in (numbers[:1], numbers[1:])]
        codes = layer.arranged(kernel)
        found = [kernel.run(layer, rows, codes).astype("float32") for rows in (numbers[:1], numbers[1:])]
        pairs = zip(found, wanted)
        error = max(float((one - two).norm() / two.norm().clip(min=1e-12)) for one, two in pairs)
        if error <= LARGEST_ERROR:
            return True
        reason = f"its result is wrong by {error:.1%}"
    except Exception as problem:  # whatever a kernel that does not exist or does not fit may raise
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[-1].strip(" .")
    if kernel.name not in _left_out:
        _left_out.add(kernel.name)
        logger.warning("%s is left out, plain operations compute instead: %s.", kernel.name, reason)
    return False


def to_mixed_gemm(layer: QuantizedLinear, codes: np.ndarray) -> np.ndarray:
    """Lay codes out for ``weight_only_linear`` on compute capability 7.5 and above.

    Columns stand in groups of two (int8) or four (int4), whose blocks of 64 inputs take turns; in a block, inputs that
    are eight apart stand together, as the instructions of tensor cores read them. No code has a sign.

    Args:
        layer: for format and sizes; i and o are multiples of 64.
        codes: as stored, int8 [i, o] or uint8 [i / 2, o].

    Returns:
        int8 [o, i], or [o / 2, i] with two codes in each byte.
    """
    bits, inputs, outputs = layer.how.bits, layer.in_features, layer.out_features
    if bits == 8:
        codes = codes.view(np.uint8) ^ 128  # adds 128
    else:
        codes = np.stack([codes & 15, codes >> 4], axis=1)
    apart = QUARTERS[bits]
    codes = codes.reshape(inputs // BLOCK, BLOCK // (8 * apart), apart, 8, outputs // COLUMNS[bits], COLUMNS[bits])
    codes = codes.transpose(4, 0, 5, 1, 3, 2).reshape(-1)
    if bits == 4:
        codes = codes[0::2] | codes[1::2] << 4
    return codes.reshape(-1, inputs).view(np.int8)


def from_mixed_gemm(layer: QuantizedLinear, codes: np.ndarray) -> np.ndarray:
    """Undo ``to_mixed_gemm``."""
    bits, inputs, outputs = layer.how.bits, layer.in_features, layer.out_features
    codes = codes.view(np.uint8).reshape(-1)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=1)
    apart = QUARTERS[bits]
    codes = codes.reshape(
        outputs // COLUMNS[bits], inputs // BLOCK, COLUMNS[bits], BLOCK // (8 * apart), 8, apart
    ).transpose(1, 3, 5, 4, 0, 2)
    codes = np.ascontiguousarray(codes).reshape(inputs, outputs)
    return (codes ^ 128).view(np.int8) if bits == 8 else codes[0::2] | codes[1::2] << 4


def _fits_mixed_gemm(layer: QuantizedLinear) -> bool:
    group = layer.how.group_size
    return (
        layer.how.name in ("int8", "int4")
        and not layer.activations
        and layer.in_features % (group or BLOCK) == layer.in_features % BLOCK == layer.out_features % BLOCK == 0
        and group in (0, 64, 128)
        and _architecture() in ARCHITECTURES
    )


def _architecture() -> int:
    major, minor = paddle.device.cuda.get_device_capability()
    return 10 * major + minor


def _mixed_gemm(layer: QuantizedLinear, x: paddle.Tensor, codes: paddle.Tensor) -> paddle.Tensor:
    from paddle.nn.quant import weight_only_linear

    scale = scale_of(layer.stored_scales, layer.how).astype(x.dtype)
    group = layer.how.group_size
    return weight_only_linear(
        x,
        codes,
        weight_scale=scale if group else scale[0],
        weight_dtype=layer.how.name,
        arch=_architecture(),
        group_size=group or -1,
    )


def _llm_int8(layer: QuantizedLinear, x: paddle.Tensor, codes: paddle.Tensor) -> paddle.Tensor:
    from paddle.nn.quant import llm_int8_linear

    from paddlesft.models.quantized.linear import OUTLIER

    return llm_int8_linear(x, codes, weight_scale=scale_of(layer.stored_scales, layer.how)[0], threshold=OUTLIER)


def _a8w8(layer: QuantizedLinear, x: paddle.Tensor, codes: paddle.Tensor) -> paddle.Tensor:
    """Multiply int8 by int8 to int32; tokens are filled up to a multiple of 16, which cuBLASLt asks for."""
    rows = x.reshape([x.size // layer.in_features, layer.in_features]).astype("float32")
    rounded = layer.rounded(rows, layer.act_scale).astype("int8")
    missing = -rounded.shape[0] % 16
    if missing:
        rounded = paddle.concat([rounded, paddle.zeros([missing, layer.in_features], dtype="int8")])
    y = paddle.matmul(rounded, codes)[: rows.shape[0]].astype("float32")
    y = y * (layer.act_scale * scale_of(layer.stored_scales, layer.how)[0])
    return y.reshape([*x.shape[:-1], layer.out_features]).astype(x.dtype)


def _fits_integers(activations: str) -> Callable[[QuantizedLinear], bool]:
    def fits(layer: QuantizedLinear) -> bool:
        multiple = layer.in_features % 16 == layer.out_features % 16 == 0
        return multiple and layer.activations == activations and layer.how.name == "int8"

    return fits


def _transposed(layer: QuantizedLinear, codes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(codes.T)


def _as_stored(layer: QuantizedLinear, codes: np.ndarray) -> np.ndarray:
    return codes


KERNELS = (
    Kernel("weight_only_linear", _fits_mixed_gemm, to_mixed_gemm, from_mixed_gemm, _mixed_gemm),
    Kernel("llm_int8_linear", _fits_integers("dynamic"), _transposed, _transposed, _llm_int8),
    Kernel("matmul of int8", _fits_integers("static"), _as_stored, _as_stored, _a8w8),
)
