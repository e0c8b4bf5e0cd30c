"""The operators of tensor parallelism that have no CPU kernel.

Legend: ``b`` tokens, ``v`` vocabulary of this rank, ``n`` tensor-parallel ranks, ``h`` any last axis.

Upstream: ``paddle._C_ops.{c_identity, c_concat, c_split, mp_allreduce_sum, c_softmax_with_cross_entropy}``, which
``paddle.distributed.fleet.layers.mpu.mp_ops`` calls with the id of a group (paddlepaddle 3.3.1: "The kernel with key
(CPU, ...) is not registered"). ``c_embedding`` has a CPU kernel. The gradients are those of Megatron-LM (Shoeybi et al.
2019, arXiv:1909.08053): identity forward is a sum backward and the other way round; joining and splitting likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
import paddle.distributed.collective as collective
from paddle import _C_ops
from paddle.autograd import PyLayer
from paddle.base import core

SUM, MAX = core.ReduceOp.SUM, core.ReduceOp.MAX


def replace_operators() -> None:
    """Let the operators work on tensors in CPU memory; those on other devices go where they went before."""
    _replace("c_identity", lambda x, group, *_: Identity.apply(x, group))
    _replace("c_concat", lambda x, rank, n, group, *_: Concatenation.apply(x, rank, n, group))
    _replace("c_split", lambda x, rank, n, group, *_: Split.apply(x, rank, n, group))
    _replace("mp_allreduce_sum", lambda x, group, *_: Sum.apply(x, group))
    _replace("c_softmax_with_cross_entropy", lambda x, *rest: VocabularyParallelCrossEntropy.apply(x, *rest))


def _replace(name: str, on_cpu: Callable[..., Any]) -> None:
    upstream = getattr(_C_ops, name)

    def operator(x: Any, *rest: Any, **options: Any) -> Any:
        # a value of a graph that is traced has no place
        at_hand = paddle.in_dynamic_mode() and x.place.is_cpu_place()
        return on_cpu(x, *rest, **options) if at_hand else upstream(x, *rest, **options)

    operator.__name__ = name
    setattr(_C_ops, name, operator)


def _process_group(group_id: int) -> Any:
    return collective._get_group_map()[group_id].process_group


def _summed(x: Any, group_id: int, op: Any = SUM) -> Any:
    x = x.clone()
    _process_group(group_id).all_reduce(x, op)
    return x


def _joined(x: Any, n: int, group_id: int) -> Any:
    """Return the members' tensors side by side, [..., n * h]."""
    parts = [paddle.empty_like(x) for _ in range(n)]
    _process_group(group_id).all_gather_on_calc_stream(parts, x)
    return paddle.concat(parts, axis=-1)


class Identity(PyLayer):
    """``c_identity``: the input of a layer whose output columns are split."""

    @staticmethod
    def forward(ctx: Any, x: Any, group_id: int) -> Any:
        ctx.group_id = group_id
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return _summed(gradient, ctx.group_id)


class Sum(PyLayer):
    """``mp_allreduce_sum``: the output of a layer whose input rows are split."""

    @staticmethod
    def forward(ctx: Any, x: Any, group_id: int) -> Any:
        return _summed(x, group_id)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient.clone()


class Concatenation(PyLayer):
    """``c_concat``: [..., h] of each rank to [..., n * h] on all."""

    @staticmethod
    def forward(ctx: Any, x: Any, rank: int, n: int, group_id: int) -> Any:
        ctx.rank, ctx.n = rank, n
        return _joined(x, n, group_id)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return paddle.split(gradient, ctx.n, axis=-1)[ctx.rank].clone()


class Split(PyLayer):
    """``c_split``: [..., h], the same on all ranks, to the rank's own [..., h / n]."""

    @staticmethod
    def forward(ctx: Any, x: Any, rank: int, n: int, group_id: int) -> Any:
        ctx.n, ctx.group_id = n, group_id
        return paddle.split(x, n, axis=-1)[rank].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return _joined(gradient, ctx.n, ctx.group_id)


class VocabularyParallelCrossEntropy(PyLayer):
    """``c_softmax_with_cross_entropy``: cross entropy of logits whose vocabulary is split over the ranks.

    The largest logit, the sum of the exponentials and the label's own logit are what has to be known of the others'
    parts. The gradient, softmax minus one at the label, needs nothing more.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Any, labels: Any, ignore_index: int, group_id: int, rank: int, n: int
    ) -> tuple[Any, Any]:
        """Return softmax [..., v] of the rank's part, and the loss in the shape of the labels.

        Args:
            ctx: of the layer.
            logits: [..., v].
            labels: token ids of the whole vocabulary, [...] or [..., 1].
            ignore_index: a label whose loss is 0.
            group_id: of the tensor-parallel group.
            rank: in that group; it holds the ids from ``rank * v`` on.
            n: size of that group.
        """
        v = logits.shape[-1]
        scores, flat = logits.reshape([-1, v]).astype("float32"), labels.reshape([-1]).astype("int64")
        scores = scores - _summed(scores.max(axis=-1, keepdim=True), group_id, MAX)
        exponentials = paddle.exp(scores)
        # in float64: paddle's sum along rows adds one number after the other on a CPU, 1e-4 off for 64,000 of them
        total = exponentials.sum(axis=-1, keepdim=True, dtype="float64").astype("float32")
        total = _summed(total, group_id)  # [b, 1]
        counted = (flat != ignore_index).astype("float32")
        local = flat - rank * v
        here = ((local >= 0) & (local < v)).astype("float32") * counted
        local = paddle.clip(local, 0, v - 1)
        picked = _summed(paddle.take_along_axis(scores, local.unsqueeze(-1), -1).squeeze(-1) * here, group_id)
        loss = (paddle.log(total).squeeze(-1) - picked) * counted
        softmax = exponentials / total
        ctx.save_for_backward(softmax, local, here, counted)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        output = softmax.astype(logits.dtype).reshape(logits.shape)
        ctx.mark_non_differentiable(output)
        return output, loss.astype(logits.dtype).reshape(labels.shape)

    @staticmethod
    def backward(ctx: Any, _softmax: Any, gradient: Any) -> Any:
        softmax, local, here, counted = ctx.saved_tensor()
        label = paddle.nn.functional.one_hot(local, softmax.shape[-1]) * here.unsqueeze(-1)
        scale = gradient.reshape([-1]).astype("float32") * counted
        return ((softmax - label) * scale.unsqueeze(-1)).astype(ctx.dtype).reshape(ctx.shape)
