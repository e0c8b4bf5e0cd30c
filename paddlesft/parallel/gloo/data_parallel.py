"""``paddle.DataParallel`` averages its gradients over process groups made of sockets.

Upstream: ``paddle.base.core.EagerReducer`` (paddlepaddle 3.3.1). It is C++ and calls its group's C++ side, which a
``SocketProcessGroup`` does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from paddle.base import core

from paddlesft.parallel.gloo.process_group import SocketProcessGroup


def replace_reducer() -> None:
    """Let ``DataParallel`` use ``GradientReducer`` where its group is one of ours."""
    upstream = core.EagerReducer

    def reducer(
        parameters: Sequence[Any], buckets: Any, sparse: Any, group: Any, sizes: Any, find_unused_parameters: bool
    ) -> Any:
        if isinstance(group, SocketProcessGroup):
            return GradientReducer(parameters, buckets, group)
        return upstream(parameters, buckets, sparse, group, sizes, find_unused_parameters)

    core.EagerReducer = reducer


class GradientReducer:
    """Averages gradients when a backward pass has ended; a parameter that had no part in it counts as zero.

    Args:
        parameters: those that are trained.
        buckets: lists of indices into ``parameters``; each is averaged in one operation.
        group: the data-parallel ranks.
    """

    def __init__(self, parameters: Sequence[Any], buckets: Sequence[Sequence[int]], group: SocketProcessGroup) -> None:
        self._buckets = [[parameters[i] for i in bucket] for bucket in buckets]
        self._group = group

    def prepare_for_backward(self, _outputs: Any) -> None:
        """Called by ``DataParallel.forward``, unless within ``no_sync``."""
        core.eager._add_backward_final_hook(self.average)

    def average(self) -> None:
        """Replace every gradient by its mean over the ranks."""
        with paddle.no_grad():
            for bucket in self._buckets:
                self._average(bucket)

    def _average(self, bucket: Sequence[Any]) -> None:
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = paddle.zeros_like(parameter)
        joined = paddle.concat([parameter.grad.reshape([-1]) for parameter in bucket])
        self._group.all_reduce(joined, core.ReduceOp.AVG)
        begin = 0
        for parameter in bucket:
            end = begin + int(np.prod(parameter.shape))
            paddle.assign(joined[begin:end].reshape(parameter.shape), output=parameter.grad)
            begin = end
