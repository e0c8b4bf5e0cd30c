"""Paddle's CPU allocator frees large tensors to glibc, and glibc hands them back to the kernel at once.

Every activation above 128 KiB then costs a page fault per 4 KiB on its next use: a quarter of the time of a matrix
product of a small model's shape. ``mallopt`` tells glibc to keep what was freed for the next allocation. The process
holds its peak memory until it ends. Seen with paddlepaddle 3.3.1 (``CPUAllocator`` behind the naive best-fit strategy).

Kept memory breaks into pieces when batches differ in length: the process then holds more than its tensors ever needed
at one time. ``give_back_excess`` compares the two and returns what is free to the kernel when it has become too much.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# Names of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
# Tensors below this come from the heap that is kept; larger ones are still mapped and unmapped singly.
LARGEST_KEPT_BYTES = 1 << 30
GROWTH_BYTES = 64 << 20
# Held beyond the tensors' peak before it is given back: a share of that peak, and what python and libraries take.
EXCESS_SHARE, EXCESS_BYTES = 0.25, 1 << 30
USER_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def apply() -> bool:
    """Keep freed memory in the process, unless the user has configured the allocator.

    Returns:
        Whether glibc took the setting.
    """
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in USER_VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES), (M_TOP_PAD, GROWTH_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)


def give_back_excess(held_after_last: int = 0) -> int:
    """Return free memory to the kernel if the process holds much more than its tensors needed at their peak.

    Args:
        held_after_last: what this function returned the last time; it does not act again before a tenth more is held,
            so that a process whose memory does not shrink is not slowed down by every call.

    Returns:
        The bytes held by the process when memory was given back last; ``held_after_last`` where nothing was done.
    """
    from paddle.base import core

    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return held_after_last
    held = int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    needed = core.host_memory_stat_peak_value("Allocated", 0)
    if held <= max(needed * (1 + EXCESS_SHARE) + EXCESS_BYTES, held_after_last * 1.1):
        return held_after_last
    return held if give_back() else held_after_last


def give_back() -> bool:
    """Return all free memory to the kernel; tell whether the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True
