"""Large sums over all ranks, such as those of gradients in plain data parallelism, go through Paddle's own gloo group.

``core.ProcessGroupGloo`` (paddlepaddle 3.3.1) sums 32 MB of float32 on two ranks in a quarter of the time that the
exchanges of a ``SocketProcessGroup`` need. Its waits end after 30 s, whatever keeps a rank away: saving, reading data,
rows that take longer. So the ranks meet here first, where a wait has the limit of the transport.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle.base import core

from paddlesft.parallel.gloo.process_group import FINISHED, Finished, SocketProcessGroup

LARGE_NUMBERS = 256 * 1024  # below, the meeting costs more than it saves


class GroupWithLargeSums(SocketProcessGroup):
    """A group whose large float32 sums another group computes.

    Args:
        sums: Paddle's group of the same ranks.
        arguments: as for ``SocketProcessGroup``.
    """

    def __init__(self, sums: Any, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sums = sums

    def all_reduce(self, tensor: Any, op: Any = core.ReduceOp.SUM, *rest: Any) -> Finished:
        """Replace the tensor by the sum over all members (or what ``op`` says)."""
        if op != core.ReduceOp.SUM or tensor.dtype != paddle.float32 or tensor.size < LARGE_NUMBERS:
            return super().all_reduce(tensor, op, *rest)
        self.barrier()
        self._sums.all_reduce(tensor, op, True).wait()
        return FINISHED

    all_reduce_on_calc_stream = allreduce = all_reduce
