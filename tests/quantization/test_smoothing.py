"""Smoothing factors: the formula, and searches that are at least as good as no smoothing."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import pytest

from paddlesft.models.quantized.formats import WeightFormat, dequantize, quantize
from paddlesft.quantization.inputs import Range
from paddlesft.quantization.paddleslim import PieceWiseSearch, prints_to_log, same_random_numbers
from paddlesft.quantization.smoothing import (
    PieceSearch,
    rounding_error,
    searched_factors,
    smooth_factors,
    some_outputs,
)

OUTLIERS = (3, 17)
INT8 = WeightFormat("int8")


def case() -> tuple[Range, paddle.Tensor, paddle.Tensor]:
    """Inputs of which two are a hundred times larger than the others, as in trained models, and a weight."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 64, 32)).astype(np.float32)
    x[..., OUTLIERS] *= 100
    x[..., 30] = 0
    seen = Range("multi_step", keep=200)
    seen.add([paddle.to_tensor(row) for row in x])
    return seen, paddle.to_tensor(random.normal(0, 0.1, (32, 16)).astype(np.float32)), paddle.to_tensor(x)


def error(x: paddle.Tensor, w: paddle.Tensor, factors: paddle.Tensor, weight: WeightFormat, activations: bool) -> float:
    """Relative error of the output when the smoothed weight, and the smoothed activations, are rounded."""
    narrow, wide = x / factors, w * factors.unsqueeze(1)
    if activations:
        step = narrow.abs().max() / 127
        narrow = paddle.round(narrow / step) * step
    found = paddle.matmul(narrow, dequantize(quantize(wide, weight), weight, w.shape[0]))
    return float((found - paddle.matmul(x, w)).norm() / paddle.matmul(x, w).norm())


def test_factors_are_those_of_smoothquant() -> None:
    seen, w, x = case()
    found = smooth_factors(seen, w, 0.5).numpy()
    wanted = np.abs(x.numpy()).max(axis=(0, 1)) ** 0.5 / np.abs(w.numpy()).max(axis=1) ** 0.5
    alive = np.arange(32) != 30
    np.testing.assert_allclose(found[alive], wanted[alive], rtol=1e-5)
    assert found[30] == 1.0


def test_outliers_cost_much_less_with_smoothing() -> None:
    seen, w, x = case()
    quiet = x.clone()  # where the outliers are silent, plain rounding leaves nothing of the other inputs
    quiet[..., 3] = 0
    quiet[..., 17] = 0

    def quiet_error(factors: paddle.Tensor) -> float:
        step = float((x / factors).abs().max() / 127)
        narrow = paddle.round(quiet / factors / step) * step
        found = paddle.matmul(narrow, dequantize(quantize(w * factors.unsqueeze(1), INT8), INT8, 32))
        return float((found - paddle.matmul(quiet, w)).norm() / paddle.matmul(quiet, w).norm())

    assert quiet_error(smooth_factors(seen, w)) < 0.2 * quiet_error(paddle.ones([32]))


@pytest.mark.parametrize(
    "options", [PieceSearch(), PieceSearch(search_pieces=True)], ids=["3 pieces", "up to 3 pieces"]
)
def test_search_finds_factors_that_are_not_worse_than_the_formula(options: PieceSearch) -> None:
    seen, w, x = case()
    found = searched_factors(seen, w, options)
    assert found.shape == [32] and float(found.min()) > 0
    ours, formula, none = (
        error(x, w, factors, INT8, True) for factors in (found, smooth_factors(seen, w), paddle.ones([32]))
    )
    assert ours < none and ours <= formula * 1.0001


def test_search_on_some_outputs_knows_the_range_of_all() -> None:
    weight = paddle.to_tensor(np.random.default_rng(1).normal(size=(6, 300)).astype(np.float32))
    weight[2, 137] = -9.0
    some = some_outputs(weight, 10)
    assert some.shape == [6, 11]
    np.testing.assert_array_equal(some.abs().max(axis=1).numpy(), weight.abs().max(axis=1).numpy())
    assert some[0, :10].tolist() == weight[0].numpy()[[0, 33, 66, 99, 132, 166, 199, 232, 265, 299]].tolist()
    assert some_outputs(weight, 300) is weight


def test_search_on_some_outputs_finds_what_it_finds_on_all() -> None:
    seen, _, x = case()
    weight = paddle.to_tensor(np.random.default_rng(2).normal(0, 0.1, (32, 700)).astype(np.float32))
    errors = []
    for tried in (some_outputs(weight, 100), weight):
        with prints_to_log(), same_random_numbers():
            found = PieceWiseSearch(3).search("", seen.samples, seen.largest.unsqueeze(0), tried)
        errors.append(error(x, weight, found[0].clip(min=1e-5), INT8, True))
    assert errors[0] < 1.02 * errors[1]


def test_search_says_nothing(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    seen, w, _ = case()
    searched_factors(seen, w, PieceSearch(pieces=2))
    assert not list(recwarn)
    assert "".join(capfd.readouterr()) == ""


def test_search_finds_the_same_in_every_run() -> None:
    seen, w, _ = case()
    first = searched_factors(seen, w, PieceSearch())
    np.random.seed(5)  # from which PaddleSlim's k-means would draw
    state = np.random.get_state()[1].copy()
    np.testing.assert_array_equal(first.numpy(), searched_factors(seen, w, PieceSearch()).numpy())
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_error_of_rounding_is_that_of_the_outputs() -> None:
    _, w, x = case()
    factors = paddle.rand([32]) + 0.5
    lost = error(x, w, factors, INT8, True) * float(paddle.matmul(x, w).norm())
    assert rounding_error(x, w, factors) == pytest.approx(lost**2, rel=1e-3)


def test_paddleslims_search_over_pieces_still_adds_the_factors_of_all() -> None:
    """When this fails, PaddleSlim has been mended, and the loop in ``searched_factors`` can go."""
    seen, w, _ = case()
    fewer = itertools.count(0, -1)  # every trial counts as better than those before it
    found = []
    for pieces, several in ((1, False), (2, False), (2, True)):
        search = PieceWiseSearch(
            pieces, search_piece=several, loss_function=lambda *_: paddle.to_tensor(float(next(fewer)))
        )
        with prints_to_log():
            found.append(search.search("", seen.samples, seen.largest.unsqueeze(0), w).numpy())
    np.testing.assert_allclose(found[2], found[0] + found[1])
