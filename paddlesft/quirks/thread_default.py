"""``import paddle`` sets ``OMP_NUM_THREADS=1`` when it is unset, so a single process uses one core of the machine.

Seen with paddlepaddle 3.0.0 to 3.3.1 (``paddle/__init__.py``). The default here is the number of usable cores,
divided by the number of ranks that the launcher started on this machine.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

VARIABLE = "OMP_NUM_THREADS"

_chosen_here: set[str] = set()  # values that this process has set, and not its user


def apply(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Set the number of threads unless the user has set it.

    Args:
        environ: the environment to change; ``PADDLE_TRAINERS_NUM`` is read from it.

    Returns:
        Whether the variable was set by this call.
    """
    if VARIABLE in environ:
        return False
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = environ.get("PADDLE_LOCAL_SIZE") or environ.get("PADDLE_TRAINERS_NUM") or "1"
    environ[VARIABLE] = str(max(1, cores // max(1, int(ranks))))
    _chosen_here.add(environ[VARIABLE])
    return True


def divide(environ: MutableMapping[str, str], ranks: int) -> None:
    """Divide the threads of this process among the ranks that it is about to start, unless the user has set them.

    Args:
        environ: of the ranks, made from this process's own; changed.
        ranks: how many of them share this machine.
    """
    threads = environ.get(VARIABLE)
    if threads in _chosen_here:
        environ[VARIABLE] = str(max(1, int(threads) // ranks))
