"""Time by kind of operator: every operator that Python calls is timed; what is left is autograd, paddle's own backward
operators and Python."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

KINDS = {
    "matrix products, oneDNN": ("matmul_v2",),
    "matrix products, MKL": ("matmul", "addmm_", "addmm"),
    "softmax and cross entropy": ("softmax", "softmax_grad", "cross_entropy_with_softmax"),
    "activation": ("swish", "sigmoid"),
    "transposed copies": ("transpose2", "roll", "concat"),
    "products by element": ("elementwise_mul", "multiply", "multiply_", "square"),
    "sums by element": ("elementwise_add", "add", "add_", "subtract", "scale"),
    "AdamW": ("adamw_",),
}


def operator_times(step: Callable[[], float], repeats: int = 4) -> dict[str, Any]:
    """Run a step a few times with timers around paddle's operators.

    Returns:
        ``seconds`` of a step and ``kinds``: seconds per step by kind, "the rest" included.
    """
    import paddle

    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    spent: dict[str, float] = defaultdict(float)
    originals = []
    for module in (paddle._C_ops, paddle._legacy_C_ops):
        for name, kind in kind_of.items():
            original = getattr(module, name, None)
            if original is None:
                continue

            def timed(*args, _original=original, _kind=kind, **kwargs):
                begin = time.perf_counter()
                result = _original(*args, **kwargs)
                spent[_kind] += time.perf_counter() - begin
                return result

            originals.append((module, name, original))
            setattr(module, name, timed)
    try:
        begin = time.perf_counter()
        for _ in range(repeats):
            step()
        seconds = (time.perf_counter() - begin) / repeats
    finally:
        for module, name, original in originals:
            setattr(module, name, original)
    kinds = {kind: value / repeats for kind, value in spent.items()}
    return {"seconds": seconds, "kinds": kinds | {"the rest": seconds - sum(kinds.values())}}
