"""Paddle creates its process groups here instead of in ``core.ProcessGroupGloo``.

Upstream: ``paddle.distributed.collective._new_process_group_impl``, which ``paddle.distributed.parallel`` imports by
name (paddlepaddle 3.3.1). Fleet creates one group for each axis of the layout and for some pairs of axes.
"""

from __future__ import annotations

import atexit
import os
from typing import Any

import paddle.distributed.collective as collective
import paddle.distributed.parallel as parallel

from paddlesft.parallel.gloo.large_sums import GroupWithLargeSums
from paddlesft.parallel.gloo.process_group import SocketProcessGroup
from paddlesft.parallel.gloo.transport import Transport

TIMEOUT_VARIABLE = "PADDLESFT_RANK_TIMEOUT"
TIMEOUT_SECONDS = 1800.0  # as long as paddle lets NCCL wait

_transports: list[Transport] = []


def replace_group_creation(large_sums: bool = False) -> None:
    """Let groups of the gloo backend be ``SocketProcessGroup``; other backends are created as before.

    Args:
        large_sums: of all ranks together are left to Paddle's group, see ``large_sums.py``.
    """
    upstream = collective._new_process_group_impl

    def new_process_group(
        backend: str, store: Any, rank: int, world_size: int, group_name: str, *rest: Any, **options: Any
    ) -> Any:
        if backend != "gloo":
            return upstream(backend, store, rank, world_size, group_name, *rest, **options)
        group_id = options.get("group_id", 0)
        arguments = (
            _transport(store), rank, world_size, group_id, lambda: collective._get_group_map()[group_id].ranks
        )  # fmt: skip
        if large_sums and group_id == 0:
            sums = upstream(backend, store, rank, world_size, group_name, *rest, **options)
            return GroupWithLargeSums(sums, *arguments)
        return SocketProcessGroup(*arguments)

    collective._new_process_group_impl = parallel._new_process_group_impl = new_process_group


def _transport(store: Any) -> Transport:
    if not _transports:
        host = os.environ["PADDLE_CURRENT_ENDPOINT"].rpartition(":")[0]
        limit = float(os.environ.get(TIMEOUT_VARIABLE) or TIMEOUT_SECONDS)
        rank, world_size = int(os.environ["PADDLE_TRAINER_ID"]), int(os.environ["PADDLE_TRAINERS_NUM"])
        _transports.append(Transport(store, rank, world_size, host, limit))
        atexit.register(_transports[0].close)
    return _transports[0]
