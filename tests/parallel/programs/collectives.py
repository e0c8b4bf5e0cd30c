"""A rank that runs every collective once and writes what it got: ``collectives.py DIRECTORY``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.base import core
from paddle.distributed.fleet.layers.mpu import mp_ops

from paddlesft.parallel import gloo
from paddlesft.parallel.gloo.large_sums import GroupWithLargeSums
from paddlesft.parallel.gloo.process_group import SocketProcessGroup

SHAPE = (4, 6)  # divisible by 2 and 4 along the first axis
LARGE = (5, 7001)  # above SMALL_BYTES, not divisible by 4
HUGE = (3, 100_003)  # above LARGE_NUMBERS


def numbers(rank: int, salt: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """What a rank brings along."""
    return np.random.default_rng((rank, salt)).standard_normal(shape).astype("float32")


def run_all(group: dist.Group) -> dict[str, np.ndarray]:
    """Run every operation; its results by name."""
    rank, n = group.rank, group.nranks
    own, pg = paddle.to_tensor(numbers(rank)), group.process_group
    got: dict[str, np.ndarray] = {}

    for word in ("SUM", "MAX", "MIN", "PROD", "AVG"):
        tensor = own.clone()
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, word), group=group)
        got[f"all_reduce {word}"] = tensor.numpy()
    for dtype in ("float16", "bfloat16", "float64", "int64"):
        tensor = paddle.to_tensor(np.arange(6) + rank).astype(dtype)
        dist.all_reduce(tensor, group=group)
        assert tensor.dtype == getattr(paddle, dtype)
        got[f"all_reduce {dtype}"] = tensor.astype("float64").numpy()
    large = paddle.to_tensor(numbers(rank, 1, LARGE))
    dist.all_reduce(large, group=group)
    got["all_reduce large"] = large.numpy()
    huge = paddle.to_tensor(numbers(rank, 4, HUGE))
    dist.all_reduce(huge, group=group)
    got["all_reduce huge"] = huge.numpy()[:, ::1000].copy()
    scalar = paddle.to_tensor(float(rank + 1))
    dist.all_reduce(scalar, group=group)
    got["all_reduce scalar"] = scalar.numpy()
    view = paddle.to_tensor(numbers(rank, 2))
    dist.all_reduce(view._slice(1, 3), group=group)  # shares the memory: the rest must stay
    got["all_reduce slice"] = view.numpy()

    tensor = own.clone()
    dist.reduce(tensor, dst=group.ranks[1], group=group)
    got["reduce"] = tensor.numpy()
    tensor = own.clone()
    dist.broadcast(tensor, src=group.ranks[1], group=group)
    got["broadcast"] = tensor.numpy()

    tensors: list[paddle.Tensor] = []
    dist.all_gather(tensors, own, group=group)
    got["all_gather"] = np.stack([t.numpy() for t in tensors])
    out = paddle.empty([SHAPE[0] * n, SHAPE[1]])
    dist.stream.all_gather(out, own, group=group, use_calc_stream=True)
    got["all_gather_into_tensor"] = out.numpy()
    objects: list = []
    dist.all_gather_object(objects, {"rank": rank, "word": "x" * rank}, group=group)
    got["all_gather_object"] = np.asarray([o["rank"] + 10 * len(o["word"]) for o in objects])
    tensors = []
    dist.gather(own, tensors, dst=group.ranks[0], group=group)
    got["gather"] = np.stack([t.numpy() for t in tensors]) if rank == 0 else np.zeros(0)

    out = paddle.empty([SHAPE[0] // n, SHAPE[1]])
    dist.reduce_scatter(out, own, group=group)
    got["reduce_scatter_tensor"] = out.numpy()
    out = paddle.empty(SHAPE)
    dist.reduce_scatter(out, [paddle.to_tensor(numbers(rank, 10 + i)) for i in range(n)], group=group)
    got["reduce_scatter"] = out.numpy()
    out = paddle.empty(SHAPE)
    several = [paddle.to_tensor(numbers(rank, 10 + i)) for i in range(n)]
    dist.scatter(out, several if rank == 0 else None, src=group.ranks[0], group=group)
    got["scatter"] = out.numpy()

    outs: list[paddle.Tensor] = []
    dist.alltoall(outs, several, group=group)
    got["all_to_all"] = np.stack([t.numpy() for t in outs])
    out = paddle.empty(SHAPE)
    dist.alltoall_single(out, own, group=group)
    got["all_to_all_single"] = out.numpy()
    sizes = [i + 1 for i in range(n)]  # member i gets i + 1 rows of everybody
    rows = paddle.to_tensor(numbers(rank, 3, (sum(sizes), 2)))
    out = paddle.empty([n * (rank + 1), 2])
    dist.alltoall_single(out, rows, in_split_sizes=sizes, out_split_sizes=[rank + 1] * n, group=group)
    got["all_to_all uneven"] = out.numpy()

    following, previous = (rank + 1) % n, (rank - 1) % n
    # everybody sends before anybody receives: a send that waits for its receiver would never return
    for salt in (20, 21):
        pg.send(paddle.to_tensor(numbers(rank, salt, LARGE)), following)
    first, second = paddle.empty(LARGE), paddle.empty(LARGE)
    tasks = [pg.recv(first, previous, False), pg.recv(second, previous, False)]
    tasks[1].wait()
    got["send and receive"] = np.stack([first.numpy(), second.numpy()])
    # a batch with its receives first, as a pipeline's
    coming = paddle.empty(SHAPE)
    pg._start_coalescing()
    pg.recv_on_calc_stream(coming, previous)
    pg.send_on_calc_stream(own, following)
    pg._end_coalescing()
    got["batch"] = coming.numpy()
    part = paddle.zeros(SHAPE)
    pg.send_partial_on_calc_stream(own, following, 4, 1)
    pg.recv_partial_on_calc_stream(part, previous, 4, 1)
    got["partial receive"] = part.numpy()
    part = own.clone()
    pg.all_gather_partial_on_calc_stream(part, part, n, rank)
    got["all_gather_partial"] = part.numpy()

    got |= tensor_parallel(group)
    dist.barrier(group)
    return got


def tensor_parallel(group: dist.Group) -> dict[str, np.ndarray]:
    """Run the operators without a CPU kernel, forward and backward."""
    rank, got = group.rank, {}
    weight = paddle.to_tensor(numbers(rank, 30))

    def both(name: str, function, x: paddle.Tensor) -> None:
        x.stop_gradient = False
        out = function(x)
        (out * paddle.to_tensor(numbers(rank, 31, tuple(out.shape)))).sum().backward()
        got[name], got[f"{name} gradient"] = out.numpy(), x.grad.numpy()

    both("identity", lambda x: mp_ops._c_identity(x * 1, group=group), paddle.to_tensor(numbers(0, 32)))
    both("sum", lambda x: mp_ops._mp_allreduce(x * weight, group=group), paddle.to_tensor(numbers(rank, 33)))
    both("concatenation", lambda x: mp_ops._c_concat(x, group=group), paddle.to_tensor(numbers(rank, 34)))
    # paddle's own PyLayer around c_split gathers the gradient along the wrong axis: the operator itself is asked
    split = (rank, group.nranks, group.id, True)
    wide = paddle.to_tensor(numbers(0, 35, (3, 8)))
    both("split", lambda x: paddle._C_ops.c_split(x, *split), wide)

    logits = paddle.to_tensor(numbers(rank, 36, (2, 3, 5)) * 30)  # 5 ids of each rank
    labels = paddle.to_tensor(np.asarray([[0, 5, -100], [9, 4, 7]]))
    logits.stop_gradient = False
    loss = mp_ops._c_softmax_with_cross_entropy(logits, labels, group=group)
    (loss.reshape([6]) * paddle.arange(1.0, 7.0)).sum().backward()
    got["cross entropy"], got["cross entropy gradient"] = loss.numpy().reshape(6), logits.grad.numpy()
    loss, softmax = mp_ops._c_softmax_with_cross_entropy(logits, labels, group=group, return_softmax=True)
    got["softmax"] = softmax.numpy()
    return got


def main() -> None:
    """Run on the group of all ranks and on a group in another order of creation than the others'."""
    rows_only = os.environ["PADDLE_TRAINERS_NUM"] == "2"
    assert gloo.install(rows_only) and gloo.install() and gloo.installed()
    dist.init_parallel_env()
    rank, world = dist.get_rank(), dist.get_world_size()
    kind = GroupWithLargeSums if rows_only else SocketProcessGroup
    assert type(dist.collective._get_default_group().process_group) is kind
    assert core.ReduceOp.SUM is not None
    directory = Path(sys.argv[1])
    np.savez(directory / f"world-{rank}.npz", **run_all(dist.collective._get_default_group()))
    if world == 4:  # two pairs at a time: gloo's own groups read each other's addresses here
        pairs = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])]
        np.savez(directory / f"pair-{rank}.npz", **run_all(pairs[rank % 2]))


if __name__ == "__main__":
    main()
