"""What a machine can do at most: operations and bytes per second, measured in this process or known of the card."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import paddle

from paddlesft.models.fast import primitives

# Tensor-core operations per second with 16-bit inputs and float32 sums, without sparsity, as NVIDIA's data sheets say.
# The first name that the card's own contains counts.
CARDS = {
    "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "A800": 312e12, "V100": 125e12,
    "L40S": 362e12, "A30": 165e12, "A10": 125e12, "T4": 65e12,
}  # fmt: skip
SIDE = {"cpu": 2048, "gpu": 8192}  # of the matrices that are multiplied
COPIED = {"cpu": 256 << 20, "gpu": 1 << 30}  # bytes, far more than any cache holds
TRIES = 5


@dataclass(frozen=True)
class Peak:
    """One figure of a machine.

    Attributes:
        value: per second.
        how: where it comes from, in words.
    """

    value: float
    how: str


def peak_flops(dtype: str) -> Peak:
    """Return the operations per second that matrix products reach on the device that is set.

    Args:
        dtype: of the numbers that are multiplied. 16 bits on a known GPU: the maker's figure; else products are timed.
    """
    kind = _kind()
    if kind == "gpu" and dtype != "float32":
        name = paddle.device.cuda.get_device_name()
        for part, value in CARDS.items():
            if part in name:
                return Peak(value, f"data sheet of {name}, {dtype}")
    dtype = dtype if kind == "gpu" else "float32"
    side = SIDE[kind]
    x, y = (paddle.randn([side, side]).astype(dtype) for _ in range(2))
    libraries: dict[str, Callable[[], object]] = {"paddle.matmul": lambda: paddle.matmul(x, y)}
    if kind == "cpu" and primitives.has_onednn():
        libraries["oneDNN"] = lambda: primitives.onednn_matmul(x, y, False, False)
    with paddle.no_grad():
        speeds = {name: 2 * side**3 / _fastest(multiply) for name, multiply in libraries.items()}
    best = max(speeds, key=speeds.__getitem__)
    return Peak(speeds[best], f"measured: {best} of {side} x {side} {dtype} matrices")


def copy_bandwidth(threads: int) -> Peak:
    """Return the bytes per second that a large copy reads and writes on the device that is set.

    Args:
        threads: that copy pieces at the same time; on a CPU.
    """
    kind = _kind()
    count = COPIED[kind]
    if kind == "gpu":
        tensor = paddle.zeros([count // 4])
        return Peak(2 * count / _fastest(tensor.clone), f"measured: copy of {count >> 20} MiB on the device")
    source, target = np.ones([count // 8]), np.zeros([count // 8])
    pieces = list(zip(np.array_split(target, threads), np.array_split(source, threads)))
    with ThreadPoolExecutor(threads) as pool:  # numpy copies without the interpreter's lock
        seconds = _fastest(lambda: list(pool.map(lambda pair: np.copyto(*pair), pieces)))
    return Peak(2 * count / seconds, f"measured: copy of {count >> 20} MiB by {threads} thread{'s' * (threads > 1)}")


def threads_here() -> int:
    """Return how many threads the libraries of this process use."""
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


def wait_for_device() -> None:
    """Wait until the device has done all it was given."""
    if _kind() != "cpu":
        paddle.device.synchronize()


def _kind() -> str:
    return "cpu" if paddle.get_device().startswith("cpu") else "gpu"


def _fastest(call: Callable[[], object]) -> float:
    """Return the least seconds of some calls; the first one is not counted."""
    seconds = []
    for _ in range(TRIES + 1):
        wait_for_device()
        begin = time.perf_counter()
        call()
        wait_for_device()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])
