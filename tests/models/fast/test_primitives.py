"""Each primitive computes the same through oneDNN and through paddle's own kernels."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlesft.models.fast import primitives


@pytest.fixture(params=[True, False], ids=["oneDNN", "native"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        assert primitives.has_onednn(), (
            "paddle's wheels for Linux on x86-64 contain oneDNN; its operator attribute moved"
        )
    monkeypatch.setattr(primitives, "has_onednn", lambda: request.param)
    monkeypatch.setattr(primitives, "multiplies_with_onednn", lambda: request.param)
    return request.param


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


@pytest.mark.parametrize("shape", [(64, 48, 80), (33, 35, 37), (7, 64, 64), (64, 8, 64)])
@pytest.mark.parametrize("transpose_x", [False, True])
@pytest.mark.parametrize("transpose_y", [False, True])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_matmul(shape, transpose_x, transpose_y, stack) -> None:
    m, k, n = shape
    x, y = draw(*stack, m, k), draw(*stack, k, n)
    given_x = np.ascontiguousarray(np.swapaxes(x, -1, -2)) if transpose_x else x
    given_y = np.ascontiguousarray(np.swapaxes(y, -1, -2)) if transpose_y else y
    found = primitives.matmul(paddle.to_tensor(given_x), paddle.to_tensor(given_y), transpose_x, transpose_y)
    np.testing.assert_allclose(found.numpy(), x @ y, atol=1e-4)


def test_transpose_then_reshape() -> None:
    x = draw(2, 5, 3, 4)
    found = primitives.transpose(paddle.to_tensor(x), [0, 2, 1, 3]).reshape([6, 20])
    np.testing.assert_array_equal(found.numpy(), x.transpose(0, 2, 1, 3).reshape(6, 20))


def test_elementwise() -> None:
    x, column, row = draw(6, 40) * 5, draw(6, 1), draw(40)
    t = paddle.to_tensor
    sigmoid = 1 / (1 + np.exp(-x.astype("float64")))
    np.testing.assert_allclose(primitives.sigmoid(t(x)).numpy(), sigmoid, atol=1e-6)
    np.testing.assert_allclose(primitives.swish(t(x)).numpy(), x * sigmoid, atol=2e-6)
    np.testing.assert_allclose(primitives.broadcast_multiply(t(x), t(column)).numpy(), x * column, rtol=1e-6)
    np.testing.assert_allclose(primitives.broadcast_multiply(t(x), t(row)).numpy(), x * row, rtol=1e-6)
    np.testing.assert_allclose(primitives.broadcast_add(t(x), t(row)).numpy(), x + row, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(primitives.row_means(t(x)).numpy(), x.mean(1, keepdims=True), atol=1e-6)


def test_softmax_with_masked_entries() -> None:
    x = draw(4, 40)
    x[:, 20:] = np.finfo("float32").min
    exp = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(
        primitives.softmax(paddle.to_tensor(x)).numpy(), exp / exp.sum(1, keepdims=True), atol=1e-6
    )


@pytest.mark.parametrize("wish", ["mkl", "onednn"])
def test_the_environment_decides_the_library(monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(primitives.MATMUL_VARIABLE, wish)
    primitives.multiplies_with_onednn.cache_clear()
    assert primitives.multiplies_with_onednn() is (wish == "onednn")
    monkeypatch.undo()
    primitives.multiplies_with_onednn.cache_clear()
