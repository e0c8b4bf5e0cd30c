"""Which sums Paddle's own group computes, and that the ranks have met before. What comes out: test_gloo_collectives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import paddle
import pytest
from paddle.base import core

from paddlesft.parallel.gloo.large_sums import LARGE_NUMBERS, GroupWithLargeSums
from paddlesft.parallel.gloo.process_group import SocketProcessGroup


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been done, in order."""
    order: list[str] = []
    for name in ("barrier", "all_reduce"):
        monkeypatch.setattr(SocketProcessGroup, name, lambda self, *_, name=name: order.append(name))
    return order


@pytest.fixture
def group(done: list[str]) -> GroupWithLargeSums:
    task = SimpleNamespace(wait=lambda: done.append("sum of paddle's group has arrived"))
    paddles = SimpleNamespace(all_reduce=lambda *_: done.append("sum of paddle's group") or task)
    return GroupWithLargeSums(paddles, None, 0, 2, 0, lambda: [0, 1])


@pytest.mark.parametrize("name", ["all_reduce", "allreduce", "all_reduce_on_calc_stream"])
def test_ranks_meet_before_a_large_sum(group: Any, done: list[str], name: str) -> None:
    """Paddle's group waits for 30 s only; a rank may be saving."""
    getattr(group, name)(paddle.zeros([LARGE_NUMBERS]))
    assert done == ["barrier", "sum of paddle's group", "sum of paddle's group has arrived"]


@pytest.mark.parametrize(
    ("tensor", "operation"),
    [
        (paddle.zeros([LARGE_NUMBERS - 1]), core.ReduceOp.SUM),
        (paddle.zeros([LARGE_NUMBERS]), core.ReduceOp.MAX),
        (paddle.zeros([LARGE_NUMBERS], dtype="float64"), core.ReduceOp.SUM),
    ],
    ids=["small", "maximum", "double"],
)
def test_other_sums_are_the_groups_own(group: Any, done: list[str], tensor: paddle.Tensor, operation: Any) -> None:
    group.all_reduce(tensor, operation)
    assert done == ["all_reduce"]
