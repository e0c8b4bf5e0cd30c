"""Sums over the ranks that read different rows. On a single process every function returns what it was given.

Those are the data-parallel and the sharding ranks. Ranks that share a layer (tensor parallel) or follow each other in a
pipeline read the same rows: what they counted is counted once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.distributed.fleet.base import topology

BUCKET_NUMBERS = 8 * 1024 * 1024  # gradients are summed in pieces of this many numbers, to save calls and memory


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size()


def is_first_rank() -> bool:
    """Return whether this process is the one that writes files and talks."""
    return dist.get_rank() == 0


def groups_of_readers() -> list[dist.communication.group.Group | None]:
    """Return the groups over which, one after the other, a sum covers every row once; None stands for all ranks."""
    layout = topology._HYBRID_PARALLEL_GROUP
    if layout is None:
        return [None] if world_size() > 1 else []
    groups = (layout.get_data_parallel_group(), layout.get_sharding_parallel_group())
    return [group for group in groups if group.nranks > 1]


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Add numbers up over all ranks that read different rows, in double precision."""
    total = paddle.to_tensor(np.asarray(values, dtype=np.float64))
    for group in groups_of_readers():
        dist.all_reduce(total, group=group)
    return total.numpy().tolist()


def largest_over_ranks(value: int) -> int:
    """Return the largest of a number over all ranks that read different rows."""
    largest = paddle.to_tensor([value], dtype="int64")
    for group in groups_of_readers():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return int(largest)


def wait_for_all() -> None:
    """Return when every rank has come here, so that all of them see what the first one wrote before."""
    if world_size() > 1:
        dist.barrier()


def sum_gradients(parameters: Iterable[paddle.Tensor]) -> None:
    """Add the gradients of all ranks up, in place. A rank that had nothing to do for a parameter counts as zero."""
    if world_size() == 1:
        return
    bucket: list[paddle.Tensor] = []
    filled = 0
    for parameter in parameters:
        if parameter.stop_gradient:
            continue
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
        bucket.append(parameter.grad)
        filled += int(np.prod(parameter.shape))
        if filled >= BUCKET_NUMBERS:
            _sum_bucket(bucket)
            bucket, filled = [], 0
    if bucket:
        _sum_bucket(bucket)


@paddle.no_grad()
def sum_sequence_gradients(parameters: Iterable[paddle.Tensor]) -> None:
    """Add up, in place, the gradients of weights that saw only this rank's part of each row (sequence parallelism).

    Norms and biases between the divided matrices are whole on every rank, but work on its tokens alone. To be called
    once, after all micro-batches of a step: PaddleNLP's hooks, which do it in every backward pass, would count earlier
    micro-batches again, as a step of ours is one of theirs.
    """
    gradients = [
        getattr(parameter, "main_grad", None) if parameter.grad is None else parameter.grad
        for parameter in parameters
        if getattr(parameter, "sequence_parallel", False) and not parameter.stop_gradient
    ]
    if gradients:
        group = topology._HYBRID_PARALLEL_GROUP.get_model_parallel_group()
        for gradient in gradients:
            if gradient is not None:
                dist.all_reduce(gradient, group=group)


def _sum_bucket(gradients: list[paddle.Tensor]) -> None:
    flat = paddle.concat([g.reshape([-1]).astype("float32") for g in gradients])
    dist.all_reduce(flat)
    begin = 0
    for gradient in gradients:
        size = int(np.prod(gradient.shape))
        paddle.assign(flat[begin : begin + size].reshape(gradient.shape).astype(gradient.dtype), gradient)
        begin += size
