"""A layout of fewer processes in which every axis that was divided is divided still."""

from __future__ import annotations

from math import prod

from paddlesft.errors import UserError
from paddlesft.parallel.layout import AXES, Layout

# of axes that are equally long, the first is shortened first
ORDER = ("data", "sharding", "tensor", "pipeline")
KEYS = {"data": "data parallel degree", "sharding": "sharding_parallel_degree", "tensor": "tensor_parallel_degree",
        "pipeline": "pipeline_parallel_degree"}  # fmt: skip
INTERLEAVED_STAGES = 3  # Paddle interleaves three stages or more


def shrink_degrees(layout: Layout, most: int) -> tuple[dict[str, int], list[str]]:
    """Shorten the axes of a layout, the longest first, until few enough processes are left.

    Args:
        layout: as it is to run.
        most: processes there may be.

    Returns:
        The degree of each axis, and a line about each that was shortened.

    Raises:
        UserError: the axes cannot all be kept with so few processes.
    """
    floors = {axis: min(layout.degree(axis), 2) for axis in AXES}
    if layout.virtual > 1:
        floors["pipeline"] = INTERLEAVED_STAGES
    degrees = {axis: layout.degree(axis) for axis in AXES}
    while prod(degrees.values()) > most:
        longer = [axis for axis in ORDER if degrees[axis] > floors[axis]]
        if longer:
            axis = max(longer, key=lambda axis: degrees[axis])
            degrees[axis] = max(degrees[axis] // 2, floors[axis])
        elif degrees["data"] > 1 and prod(degrees.values()) > degrees["data"]:
            degrees["data"] = 1  # what the other axes do with rows of their own is left to sharding
        else:
            least = prod(degrees.values())
            raise UserError(
                f"This layout takes {least} processes or more to rehearse ({layout}, each axis that is divided kept at "
                f"{' or '.join(sorted({str(n) for n in floors.values() if n > 1}))}); allowed here: {most}. Each takes "
                f"about 0.8 GB of memory. If there is room: --max_processes {least}."
            )
    return degrees, [
        f"{KEYS[axis]}: {layout.degree(axis)} -> {degrees[axis]}"
        + (" (data parallelism beside the other axes is not rehearsed)" if degrees[axis] == 1 else "")
        for axis in ORDER
        if degrees[axis] != layout.degree(axis)
    ]
