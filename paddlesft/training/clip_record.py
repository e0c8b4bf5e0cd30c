"""How much each optimizer step's gradients were scaled down by clipping, whatever the layout.

Paddle clips by the norm over all ranks in a class for each kind of layout, and tells nobody the norm. What clipping did
is seen from outside: all gradients were multiplied by min(1, max_grad_norm / norm).

Upstream: ``paddle.nn.ClipGradByGlobalNorm``, ``HybridParallelClipGrad``, ``GroupShardedClipGrad`` (``_dygraph_clip``);
seen with paddle 3.3.1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import paddle
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer.hybrid_parallel_optimizer import HybridParallelClipGrad
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_utils import GroupShardedClipGrad

KINDS = (paddle.nn.ClipGradByGlobalNorm, HybridParallelClipGrad, GroupShardedClipGrad)


def record_clipping(note: Callable[[float], None]) -> None:
    """Call a function with the factor of every clipping of this process from now on.

    Args:
        note: receives the factor of the gradients, 1 for those left as they are, NaN where all of this rank are zero.
    """
    for kind in KINDS:
        kind._dygraph_clip = _noting(kind._dygraph_clip, note)


def _noting(clip: Callable[..., Any], note: Callable[[float], None]) -> Callable[..., Any]:
    @functools.wraps(clip)
    def clip_and_note(self: Any, params_grads: Any) -> Any:
        pairs = list(params_grads)
        before = _local_norm(pairs)
        clipped = clip(self, pairs)
        note(_local_norm(pairs if clipped is None else clipped) / before if before > 0 else math.nan)
        return clipped

    return clip_and_note


def _local_norm(params_grads: Any) -> float:
    with paddle.no_grad():
        squares = [float((g.astype("float32") ** 2).sum()) for p, g in params_grads if g is not None]
    return sum(squares) ** 0.5
