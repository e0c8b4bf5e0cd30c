"""The fused head and cross entropy equal logits followed by paddle's cross entropy."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddlesft.models.fast import linear_cross_entropy
from paddlesft.models.fast.linear_cross_entropy import LinearCrossEntropy


def tensors(rows: int, vocabulary_first: bool, trained: bool) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    paddle.seed(1)
    hidden = paddle.randn([rows, 40])
    weight = paddle.randn([90, 40] if vocabulary_first else [40, 90])
    hidden.stop_gradient, weight.stop_gradient = False, not trained
    return hidden, weight, paddle.randint(0, 90, [rows])


@pytest.mark.parametrize("rows", [1, 10, 32, 37])
@pytest.mark.parametrize("vocabulary_first", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_losses_and_gradients(monkeypatch, rows, vocabulary_first, trained) -> None:
    monkeypatch.setattr(linear_cross_entropy, "CHUNK_ROWS", 10)
    hidden, weight, targets = tensors(rows, vocabulary_first, trained)
    weights = paddle.rand([rows])  # every row's loss counts differently
    expected = F.cross_entropy(paddle.matmul(hidden, weight, transpose_y=vocabulary_first), targets, reduction="none")
    (expected.reshape([-1]) * weights).sum().backward()
    wanted = hidden.grad.numpy(), weight.grad.numpy() if trained else None
    hidden.clear_gradient()
    weight.clear_gradient()
    found = LinearCrossEntropy.apply(hidden, weight, targets, vocabulary_first, True)
    (found * weights).sum().backward()
    np.testing.assert_allclose(found.numpy(), expected.numpy().reshape(-1), atol=1e-4)
    np.testing.assert_allclose(hidden.grad.numpy(), wanted[0], atol=1e-4)
    if trained:
        np.testing.assert_allclose(weight.grad.numpy(), wanted[1], atol=1e-4)
    else:
        assert weight.grad is None


def test_nan_is_not_lost() -> None:
    hidden, weight, targets = tensors(5, True, False)
    hidden = hidden.detach()
    hidden[2] = float("nan")
    losses = LinearCrossEntropy.apply(hidden, weight, targets, True, False).numpy()
    assert np.isnan(losses).tolist() == [False, False, True, False, False]
