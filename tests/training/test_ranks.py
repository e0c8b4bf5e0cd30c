"""Which gradients ranks that share tokens add up; on a single process nothing is sent."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from paddle.distributed.fleet.base import topology

from paddlesft.training import ranks


class Layout:
    """Tensor-parallel ranks."""

    def get_model_parallel_group(self) -> str:
        return "tensor"


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every sum is of two equal ranks; the list holds the groups it was asked over."""
    groups: list[str] = []

    def all_reduce(tensor: paddle.Tensor, group: Any = None) -> None:
        groups.append(group)
        tensor.set_value(tensor * 2)

    monkeypatch.setattr(ranks.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(topology, "_HYBRID_PARALLEL_GROUP", Layout())
    return groups


def test_gradients_of_weights_that_see_some_tokens_are_summed(doubled: list[str]) -> None:
    layer = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.LayerNorm(2), paddle.nn.LayerNorm(2))
    for norm in (layer[1], layer[2]):
        norm.weight.sequence_parallel = norm.bias.sequence_parallel = True
    layer[1].bias.stop_gradient = True
    layer(paddle.to_tensor([[1.0, 3.0], [2.0, 5.0]])).pow(3).sum().backward()
    before = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    ranks.sum_sequence_gradients(layer.parameters())
    factors = {name: 2 if name in ("1.weight", "2.weight", "2.bias") else 1 for name in before}
    for name, parameter in layer.named_parameters():
        if name in before:
            assert bool((parameter.grad == before[name] * factors[name]).all()), name
    assert set(before) == {"0.weight", "0.bias", "1.weight", "2.weight", "2.bias"}
    assert doubled == ["tensor"] * 3


def test_a_weight_whose_gradient_another_rank_keeps_is_left_out(doubled: list[str]) -> None:
    norm = paddle.nn.LayerNorm(2)
    norm.weight.sequence_parallel = True
    ranks.sum_sequence_gradients(norm.parameters())
    assert norm.weight.grad is None and doubled == []


def test_float32_gradients_of_half_precision_weights_are_summed(doubled: list[str]) -> None:
    norm = paddle.nn.LayerNorm(2)
    norm.weight.sequence_parallel = True
    norm.weight.main_grad = paddle.to_tensor([1.0, 2.0])
    ranks.sum_sequence_gradients(norm.parameters())
    assert norm.weight.main_grad.tolist() == [2.0, 4.0]


def test_models_that_share_no_tokens_send_nothing() -> None:
    ranks.sum_sequence_gradients(paddle.nn.LayerNorm(2).parameters())
