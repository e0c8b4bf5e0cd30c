"""The collectives of a group of CPU ranks: what paddle calls on ``Group.process_group``.

Legend: ``n`` ranks of the group; a tensor of any shape.

``core.ProcessGroupGloo`` (paddlepaddle 3.3.1) has all_reduce, all_gather, broadcast, reduce, scatter, gather, barrier,
send and recv. It raises for reduce_scatter, all_to_all, ``all_gather_into_tensor``, ``scatter_tensor``, every
``*_on_calc_stream``, the partial send, receive and gather of a pipeline beside tensor parallelism, and for
``ReduceOp.AVG``; its all_reduce of float16 returns infinity. Here each of them is an exchange of pieces between ranks.

Sums are taken in the order of the ranks, in float32 for half precision, so that all ranks hold the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from functools import reduce as fold
from typing import Any

import numpy as np
import paddle
from paddle.base import core

from paddlesft.parallel.gloo.transport import POINT_TO_POINT, Transport

HALF = (paddle.float16, paddle.bfloat16)
# Above this, each rank sums a part and hands it round. Of four ranks, each then sends half as many bytes.
SMALL_BYTES = 64 * 1024

_COMBINE = {
    core.ReduceOp.SUM: np.add,
    core.ReduceOp.AVG: np.add,
    core.ReduceOp.MAX: np.maximum,
    core.ReduceOp.MIN: np.minimum,
    core.ReduceOp.PRODUCT: np.multiply,
}


class Finished:
    """The task of an operation that is done: paddle waits for tasks."""

    def wait(self, *_: Any) -> bool:
        return True

    is_completed = synchronize = wait


class Receipt:
    """The task of a receive that was asked for; its tensor is filled when somebody waits for it."""

    def __init__(self, group: SocketProcessGroup, source: int) -> None:
        self._group, self._source, self.done = group, source, False

    def wait(self, *_: Any) -> bool:
        while not self.done:
            self._group.receive_next(self._source)
        return True

    is_completed = synchronize = wait


FINISHED = Finished()


class SocketProcessGroup:
    """Stands where paddle expects a ``core.ProcessGroup``.

    Args:
        transport: connections with all ranks.
        rank: of this process within the group.
        size: number of members, ``n``.
        group_id: the same number on all members.
        ranks: gives the members' numbers among all ranks; paddle knows them only after the group has been made.
    """

    def __init__(
        self, transport: Transport, rank: int, size: int, group_id: int, ranks: Callable[[], Sequence[int]]
    ) -> None:
        self._transport, self._rank, self._size, self._id = transport, rank, size, group_id
        self._find_ranks = ranks
        self._count = 0
        self._sent, self._received = [0] * size, [0] * size
        self._asked: dict[int, list[tuple[Receipt, Any]]] = {i: [] for i in range(size)}
        self._batch: list[Receipt] | None = None

    def name(self) -> str:
        """Paddle's word for the backend; ``Group.backend``."""
        return "GLOO"

    def rank(self) -> int:
        """Return this process's number within the group."""
        return self._rank

    def size(self) -> int:
        """Return ``n``."""
        return self._size

    @cached_property
    def _ranks(self) -> list[int]:
        return list(self._find_ranks())

    def __repr__(self) -> str:
        return f"group {self._id} of ranks {', '.join(map(str, self._ranks))}"

    # ---- the exchange that every collective is made of ----

    def _exchange(self, operation: str, pieces: Sequence[np.ndarray | None], sources: Sequence[int]) -> list[Any]:
        """Send ``pieces[i]`` to member i and return what each member of ``sources`` sent here, as flat arrays.

        Args:
            operation: the name of the collective.
            pieces: ``n`` arrays; None is not sent.
            sources: the members that send something here.

        Returns:
            ``n`` flat arrays of the pieces' type; None for a member that is no source.
        """
        self._count += 1
        n, me = self.size(), self._rank
        for step in range(1, n):  # each rank begins with its successor: no rank is everybody's first
            to = (me + step) % n
            if pieces[to] is not None:
                self._transport.send(self._ranks[to], self._id, operation, self._count, _bytes(pieces[to]))
        got: list[Any] = [None] * n
        for source in sources:
            if source == me:
                got[me] = None if pieces[me] is None else np.ascontiguousarray(pieces[me]).reshape(-1)
            else:
                got[source] = self._transport.receive(
                    self._ranks[source], self._id, operation, self._count, lambda: f"{operation} of {self!r}"
                )
        return got

    def _everybody(self) -> range:
        return range(self.size())

    def _gathered(self, operation: str, tensor: Any) -> list[np.ndarray]:
        """Return the flat tensors of all members."""
        own = _array(tensor)
        return [_typed(got, own.dtype) for got in self._exchange(operation, [own] * self.size(), self._everybody())]

    def _scattered_sum(self, operation: str, pieces: Sequence[np.ndarray], op: Any) -> np.ndarray:
        """Return the sum (or what ``op`` says) over the members of the piece that each has for this one, flat."""
        got = self._exchange(operation, pieces, self._everybody())
        return self._combined([_typed(piece, pieces[0].dtype) for piece in got], op)

    def _combined(self, arrays: Sequence[np.ndarray], op: Any) -> np.ndarray:
        total = fold(_COMBINE[op], arrays)
        return (total / self.size()).astype(total.dtype) if op == core.ReduceOp.AVG else total

    # ---- reductions ----

    def all_reduce(self, tensor: Any, op: Any = core.ReduceOp.SUM, *_: Any) -> Finished:
        """Replace the tensor by the sum over all members (or what ``op`` says)."""
        own = _array(tensor)
        n = self.size()
        if n == 2 or own.nbytes <= SMALL_BYTES:
            got = self._exchange("all_reduce", [own] * n, self._everybody())
            total = self._combined([_typed(array, own.dtype) for array in got], op)
        else:
            part = self._scattered_sum("all_reduce", np.array_split(own.reshape(-1), n), op)
            got = self._exchange("all_reduce", [part] * n, self._everybody())
            total = np.concatenate([_typed(array, own.dtype) for array in got])
        return _write(tensor, total)

    def reduce(self, tensor: Any, dst: int, op: Any = core.ReduceOp.SUM, *_: Any) -> Finished:
        """Replace the tensor of member ``dst`` by the sum over all members; the others keep theirs."""
        own = _array(tensor)
        pieces = [own if i == dst else None for i in self._everybody()]
        got = self._exchange("reduce", pieces, self._everybody() if self._rank == dst else ())
        if self._rank != dst:
            return FINISHED
        return _write(tensor, self._combined([_typed(array, own.dtype) for array in got], op))

    def reduce_scatter(self, out: Any, tensors: Sequence[Any], op: Any = core.ReduceOp.SUM, *_: Any) -> Finished:
        """``out`` becomes the sum over all members of their ``tensors[rank]``."""
        return _write(out, self._scattered_sum("reduce_scatter", [_array(t) for t in tensors], op))

    def reduce_scatter_tensor(self, out: Any, tensor: Any, op: Any = core.ReduceOp.SUM, *_: Any) -> Finished:
        """As ``reduce_scatter`` of the tensor cut into ``n`` equal parts along its first axis."""
        return _write(out, self._scattered_sum("reduce_scatter", self._equal_parts(tensor), op))

    # ---- gathering and scattering ----

    def all_gather(self, out: Any, tensor: Any, sync_op: bool | None = None) -> Finished:
        """``out``, a list of ``n`` tensors or one tensor with ``n`` times the size, receives every member's tensor.

        Without ``sync_op`` it is paddle's older overload, whose tensor comes first; sequence parallelism uses it.
        """
        if sync_op is None:
            out, tensor = tensor, out
        return self.all_gather_on_calc_stream(out, tensor)

    def all_gather_on_calc_stream(self, out: Any, tensor: Any) -> Finished:
        """``all_gather``, always with ``out`` first."""
        if isinstance(out, list | tuple):
            for place, array in zip(out, self._gathered("all_gather", tensor)):
                _write(place, array)
            return FINISHED
        return self.all_gather_into_tensor(out, tensor)

    def all_gather_into_tensor(self, out: Any, tensor: Any, *_: Any) -> Finished:
        """``out`` receives every member's tensor, joined along the first axis."""
        return _write(out, np.concatenate(self._gathered("all_gather", tensor)))

    def all_gather_partial(self, out: Any, tensor: Any, num: int, index: int, *_: Any) -> Finished:
        """``out`` receives part i of ``num`` of the tensor of member i."""
        own = np.array_split(_array(tensor).reshape(-1), num)[index]
        got = self._exchange("all_gather_partial", [own] * self.size(), self._everybody())
        return _write(out, np.concatenate([_typed(array, own.dtype) for array in got]))

    def gather(self, tensor: Any, out: Any, dst: int, *_: Any) -> Finished:
        """Member ``dst`` receives every member's tensor in ``out``, a list or one tensor."""
        own = _array(tensor)
        pieces = [own if i == dst else None for i in self._everybody()]
        got = self._exchange("gather", pieces, self._everybody() if self._rank == dst else ())
        if self._rank != dst:
            return FINISHED
        arrays = [_typed(array, own.dtype) for array in got]
        if not isinstance(out, list | tuple):
            return _write(out, np.concatenate(arrays))
        for place, array in zip(out, arrays):
            _write(place, array)
        return FINISHED

    def broadcast(self, tensor: Any, src: int, *_: Any) -> Finished:
        """Every member's tensor becomes that of member ``src``."""
        own = _array(tensor)
        pieces = [own if self._rank == src and i != src else None for i in self._everybody()]
        got = self._exchange("broadcast", pieces, () if self._rank == src else (src,))
        return FINISHED if self._rank == src else _write(tensor, _typed(got[src], own.dtype))

    def scatter(self, out: Any, tensors: Sequence[Any] | Any, src: int, sync_op: bool | None = None) -> Finished:
        """``out`` receives ``tensors[rank]`` of member ``src``; without ``sync_op``, the tensors come first."""
        if sync_op is None:
            out, tensors = tensors, out
        return self.scatter_on_calc_stream(out, tensors, src)

    def scatter_on_calc_stream(self, out: Any, tensors: Sequence[Any] | Any, src: int) -> Finished:
        """``scatter``, always with ``out`` first."""
        wanted = _array(out).dtype
        pieces: list[np.ndarray | None] = [None] * self.size()
        if self._rank == src:
            several = isinstance(tensors, list | tuple)
            pieces = [_array(t) for t in tensors] if several else self._equal_parts(tensors)
        return _write(out, _typed(self._exchange("scatter", pieces, (src,))[src], wanted))

    def scatter_tensor(self, out: Any, tensor: Any, src: int, *_: Any) -> Finished:
        """As ``scatter`` of the tensor cut into ``n`` equal parts along its first axis."""
        return self.scatter_on_calc_stream(out, tensor, src)

    # ---- everybody to everybody ----

    def all_to_all(self, out: Sequence[Any], tensors: Sequence[Any], *_: Any) -> Finished:
        """``out[i]`` receives ``tensors[rank]`` of member i."""
        pieces = [_array(t) for t in tensors]
        for place, array in zip(out, self._exchange("all_to_all", pieces, self._everybody())):
            _write(place, _typed(array, pieces[0].dtype))
        return FINISHED

    def all_to_all_tensor(self, out: Any, tensor: Any, *_: Any) -> Finished:
        """As ``all_to_all`` with both tensors cut into ``n`` equal parts along their first axis."""
        return self.all_to_all_single(out, tensor)

    def all_to_all_single(
        self,
        out: Any,
        tensor: Any,
        out_sizes: Sequence[int] | None = None,
        in_sizes: Sequence[int] | None = None,
        *_: Any,
    ) -> Finished:
        """As ``all_to_all_tensor``, the part for member i being ``in_sizes[i]`` long."""
        own = _array(tensor)
        pieces = np.split(own, np.cumsum(in_sizes)[:-1]) if in_sizes else self._equal_parts(tensor)
        got = self._exchange("all_to_all", pieces, self._everybody())
        return _write(out, np.concatenate([_typed(array, own.dtype) for array in got]))

    def barrier(self, *_: Any) -> Finished:
        """Return when every member has come here."""
        self._exchange("barrier", [np.empty(0, np.uint8)] * self.size(), self._everybody())
        return FINISHED

    # ---- point to point, for pipelines ----

    def send(self, tensor: Any, dst: int, *_: Any) -> Finished:
        """Send a tensor to member ``dst``; does not wait for it."""
        self._sent[dst] += 1
        self._transport.send(self._ranks[dst], self._id, POINT_TO_POINT, self._sent[dst], _bytes(_array(tensor)))
        return FINISHED

    def recv(self, tensor: Any, src: int, sync_op: bool = True, *_: Any) -> Receipt:
        """Receive the next tensor that member ``src`` has sent here, at once or when the task is waited for.

        Between ``_start_coalescing`` and ``_end_coalescing`` the receives wait for the sends of the batch.
        """
        return self._ask(src, lambda array: _write(tensor, _typed(array, _array(tensor).dtype)), sync_op)

    def send_partial(self, tensor: Any, dst: int, num: int, index: int, *_: Any) -> Finished:
        """Send part ``index`` of ``num`` of the tensor."""
        self._sent[dst] += 1
        part = np.array_split(_array(tensor).reshape(-1), num)[index]
        self._transport.send(self._ranks[dst], self._id, POINT_TO_POINT, self._sent[dst], _bytes(part))
        return FINISHED

    def recv_partial(self, tensor: Any, src: int, num: int, index: int, sync_op: bool = True, *_: Any) -> Receipt:
        """Receive part ``index`` of ``num`` into its place in the tensor."""

        def fill(array: memoryview) -> None:
            whole = _array(tensor).reshape(-1).copy()
            part = np.array_split(whole, num)[index]
            part[:] = _typed(array, whole.dtype)  # a view of the whole
            _write(tensor, whole)

        return self._ask(src, fill, sync_op)

    def _ask(self, src: int, fill: Any, now: bool) -> Receipt:
        receipt = Receipt(self, src)
        self._asked[src].append((receipt, fill))
        if self._batch is not None:
            self._batch.append(receipt)
        elif now:
            receipt.wait()
        return receipt

    def receive_next(self, src: int) -> None:
        """Fill the tensor of the oldest receive that was asked for from a member."""
        receipt, fill = self._asked[src].pop(0)
        self._received[src] += 1
        fill(
            self._transport.receive(
                self._ranks[src], self._id, POINT_TO_POINT, self._received[src], lambda: f"a receive of {self!r}"
            )
        )
        receipt.done = True

    def _start_coalescing(self) -> None:
        self._batch = []

    def _end_coalescing(self, tasks: Any = None) -> None:
        batch, self._batch = self._batch or [], None
        for receipt in batch:
            receipt.wait()

    # ---- the same under the other names that paddle uses ----

    # There is one stream on a CPU, and it is that of the calculation.
    all_reduce_on_calc_stream = allreduce = all_reduce
    reduce_on_calc_stream = reduce
    reduce_scatter_on_calc_stream = reduce_scatter
    reduce_scatter_tensor_on_calc_stream = reduce_scatter_tensor
    all_gather_into_tensor_on_calc_stream = all_gather_into_tensor
    all_gather_partial_on_calc_stream = all_gather_partial
    broadcast_on_calc_stream = broadcast
    scatter_tensor_on_calc_stream = scatter_tensor
    all_to_all_on_calc_stream = all_to_all
    all_to_all_tensor_on_calc_stream = all_to_all_tensor
    all_to_all_single_on_calc_stream = all_to_all_single
    send_partial_on_calc_stream = send_partial
    send_on_calc_stream = send

    def recv_on_calc_stream(self, tensor: Any, src: int) -> Receipt:
        """``recv`` that waits."""
        return self.recv(tensor, src)

    def recv_partial_on_calc_stream(self, tensor: Any, src: int, num: int, index: int) -> Receipt:
        """``recv_partial`` that waits."""
        return self.recv_partial(tensor, src, num, index)

    def _equal_parts(self, tensor: Any) -> list[np.ndarray]:
        array = _array(tensor)
        if array.size % self.size():
            raise ValueError(f"a tensor of shape {list(tensor.shape)} cannot be cut into {self.size()} equal parts")
        return np.split(array.reshape(-1), self.size())


def _array(tensor: Any) -> np.ndarray:
    """Return a tensor's numbers. Half precision becomes float32: numpy has no bfloat16, and sums need the digits."""
    tensor = tensor.detach()
    return (tensor.astype("float32") if tensor.dtype in HALF else tensor).numpy()


def _bytes(array: np.ndarray) -> memoryview | bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""


def _typed(data: memoryview | np.ndarray, dtype: np.dtype) -> np.ndarray:
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, dtype)


def _write(out: Any, numbers: np.ndarray) -> Finished:
    """Put numbers into the memory of a tensor, which may be a view of another one."""
    with paddle.no_grad():
        value = paddle.to_tensor(np.ascontiguousarray(numbers).reshape(out.shape))
        paddle.assign(value if value.dtype == out.dtype else value.astype(out.dtype), output=out)
    return FINISHED
