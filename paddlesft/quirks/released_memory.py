"""Paddle's CPU allocator frees large tensors to glibc, and glibc hands them back to the kernel at once.

Every activation above 128 KiB then costs a page fault per 4 KiB on its next use: a quarter of the time of a matrix
product of a small model's shape. ``mallopt`` tells glibc to keep what was freed for the next allocation. The process
holds its peak memory until it ends. Seen with paddlepaddle 3.3.1 (``CPUAllocator`` behind the naive best-fit strategy).
"""

from __future__ import annotations

import ctypes
import os
import sys

# Names of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
# Tensors below this come from the heap that is kept; larger ones are still mapped and unmapped singly.
LARGEST_KEPT_BYTES = 1 << 30
GROWTH_BYTES = 64 << 20
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
