"""Paddle's wheel ships an MKL (``libmklml_intel.so``) that takes a slow code path on AMD processors.

``MKL_DEBUG_CPU_TYPE=5`` makes that MKL use its AVX2 kernels there; matrix products run more than twice as fast.
It has to be in the environment before paddle loads the library. Seen with paddlepaddle 3.0.0 to 3.3.1.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "MKL_DEBUG_CPU_TYPE"


def apply(environ: MutableMapping[str, str] = os.environ, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Set the switch on AMD processors unless the user has set it.

    Args:
        environ: the environment to change.
        cpuinfo: the file that names the processor's vendor.

    Returns:
        Whether the switch was set by this call.
    """
    if VARIABLE in environ:
        return False
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            vendor = next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return False
    if "AuthenticAMD" not in vendor:
        return False
    environ[VARIABLE] = "5"
    return True
