"""Which number format CPU ranks compute in."""

from __future__ import annotations

HALF = {"bfloat16", "float16"}


def precision_on_cpu_ranks(wanted: str) -> tuple[str, str | None]:
    """Return the format that CPU ranks compute in where a config asks for another, and what to tell the user.

    Weights in bfloat16 or float16 meet operators without a CPU kernel, and ``bf16: true`` over float32 weights is
    silently left out by paddle there (paddlepaddle 3.3.1). Both become float32, which is said. The collectives
    themselves take every format; they sum half precision in float32.

    Args:
        wanted: ``float32``, ``bfloat16`` or ``float16``.

    Returns:
        The format and the notice; None when nothing changes.
    """
    if wanted not in HALF:
        return wanted, None
    return "float32", (
        f"{wanted} becomes float32: CPU ranks have no kernels for it. The layout, the numbers and the checkpoints are "
        "rehearsed, the rounding of half precision is not."
    )
