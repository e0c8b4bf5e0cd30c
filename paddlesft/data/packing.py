"""Several rows in one: which rows go together. They never attend to each other (see ``collate.py``)."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def pack_in_order(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill packs with rows in their order; a row that does not fit begins the next pack.

    Args:
        lengths: positions each row takes.
        capacity: positions of a pack.

    Returns:
        For each pack its rows' indices; every row is in exactly one pack.

    Raises:
        ValueError: a row is longer than the capacity.
    """
    _check(lengths, capacity)
    packs: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not packs or length > room:
            packs.append([])
            room = capacity
        packs[-1].append(index)
        room -= length
    return packs


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill packs longest row first, each into the fullest pack that still has room (best-fit decreasing).

    Args:
        lengths: positions each row takes.
        capacity: positions of a pack.

    Returns:
        For each pack its rows' indices, ascending; packs in the order of their first row; every row in exactly one.

    Raises:
        ValueError: a row is longer than the capacity.
    """
    _check(lengths, capacity)
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, pack), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(rooms, (lengths[index], -1))
        if at < len(rooms):
            room, pack = rooms.pop(at)
        else:
            room, pack = capacity, len(packs)
            packs.append([])
        packs[pack].append(index)
        bisect.insort(rooms, (room - lengths[index], pack))
    return sorted(sorted(pack) for pack in packs)


def _check(lengths: Sequence[int], capacity: int) -> None:
    too_long = [index for index, length in enumerate(lengths) if length > capacity]
    if too_long:
        raise ValueError(f"row {too_long[0]} has {lengths[too_long[0]]} positions, more than a pack of {capacity}")
