"""Statistics of a layer's inputs: those that the methods define, with PaddleSlim's samplers and observers."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlesft.quantization.inputs import ActivationScale, Middle, Moments, Range
from paddlesft.quantization.paddleslim import PaddleSlimEMASampler


def steps(count: int = 4) -> list[np.ndarray]:
    """Steps of two rows with five tokens of six inputs."""
    random = np.random.default_rng(0)
    return [(random.normal(size=(2, 5, 6)) * (i + 1) + np.arange(6)).astype(np.float32) for i in range(count)]


def rows(x: np.ndarray) -> list[paddle.Tensor]:
    return [paddle.to_tensor(row) for row in x]


def test_middle_without_a_sampler_halves_the_past() -> None:
    seen, middles = Middle("none"), []
    for x in steps():
        seen.add(rows(x))
        flat = x.reshape(-1, 6)
        middles.append((flat.min(axis=0) + flat.max(axis=0)) / 2)
    wanted = middles[0]
    for middle in middles[1:]:
        wanted = (wanted + middle) / 2
    np.testing.assert_allclose(seen.value.numpy(), wanted, rtol=1e-5)


def test_moving_middle_weighs_recent_steps_more() -> None:
    seen, means = Middle("ema"), [x.reshape(-1, 6).mean(axis=0) for x in steps()]
    for count, x in enumerate(steps(), 1):
        seen.add(rows(x))
        weights = 0.98 ** np.arange(count)[::-1]
        np.testing.assert_allclose(seen.value.numpy(), np.average(means[:count], axis=0, weights=weights), rtol=1e-4)


def test_paddleslims_average_still_begins_wrong() -> None:
    """When this fails, PaddleSlim has been mended, and paddleslim.EMASampler can go."""
    sampler, one = PaddleSlimEMASampler(), paddle.ones([1])
    assert [round(float(sampler.sample(one, None, "x")), 2) for _ in range(2)] == [0.02, 1.98]


@pytest.mark.parametrize(("sampler", "kept"), [("none", 10), ("multi_step", 40)])
def test_range_is_the_largest_magnitude_of_all_steps(sampler: str, kept: int) -> None:
    seen = Range(sampler, keep=10)
    for x in steps():
        seen.add(rows(x))
    np.testing.assert_allclose(seen.largest.numpy(), np.abs(np.stack(steps())).max(axis=(0, 1, 2)), rtol=1e-6)
    assert seen.samples.shape == [1, kept, 6]
    assert Range().samples is None


def test_few_samples_have_the_loudest_token_among_them() -> None:
    for x in steps():
        seen = Range(keep=3)
        seen.add(rows(x))
        assert seen.samples.shape == [1, 3, 6]
        assert float(seen.samples.abs().max()) == np.abs(x).max()


@pytest.mark.parametrize("method", ["abs_max", "avg"])
def test_scale_of_activations(method: str) -> None:
    scale = ActivationScale(method)
    for x in steps():
        scale.add(rows(x))
    largest = [np.abs(x).reshape(2, -1).max(axis=1).mean() for x in steps()]
    wanted = np.mean(largest) if method == "avg" else max(np.abs(x).max() for x in steps())
    assert scale.step == pytest.approx(wanted / 127, rel=1e-5)


def test_silent_inputs_still_have_a_step() -> None:
    scale = ActivationScale("avg")
    scale.add([paddle.zeros([3, 4]), paddle.zeros([3, 4])])
    assert scale.step > 0


def test_moments_are_means_over_tokens() -> None:
    seen = Moments()
    for x in steps():
        seen.add(rows(x))
    tokens = np.concatenate(steps()).reshape(-1, 6).astype(np.float64)
    assert seen.tokens == len(tokens) == 40
    np.testing.assert_allclose(seen.hessian.numpy(), tokens.T @ tokens / 40, rtol=1e-5)
    np.testing.assert_allclose(seen.mean.numpy(), np.abs(tokens).mean(axis=0), rtol=1e-5)
    moved, shift = tokens - np.arange(6), paddle.to_tensor(-np.arange(6, dtype=np.float32))
    np.testing.assert_allclose(seen.shifted_hessian(shift).numpy(), moved.T @ moved / 40, rtol=1e-4, atol=1e-4)


def test_what_does_not_depend_on_steps_is_the_same_in_one_step_and_in_four() -> None:
    one, four = (
        [Range(), ActivationScale("avg"), ActivationScale("abs_max"), Moments()],
        [Range(), ActivationScale("avg"), ActivationScale("abs_max"), Moments()],
    )
    for seen in one:
        seen.add([row for x in steps() for row in rows(x)])
    for seen in four:
        for x in steps():
            seen.add(rows(x))
    for a, b in zip(one, four):
        for name in ("largest", "step", "hessian", "mean"):
            if hasattr(a, name):
                np.testing.assert_allclose(np.asarray(getattr(a, name)), np.asarray(getattr(b, name)), rtol=1e-5)
