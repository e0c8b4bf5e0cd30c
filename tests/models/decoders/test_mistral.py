"""Mistral: its sliding window, with padding, cache, packing and prefix, and recompute under a tuned prefix."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlesft.models.decoders import decoder_of
from tests.models.decoders import proofs

WINDOW = 5  # of the rows' 7 to 14 tokens


@pytest.fixture
def model():
    return proofs.small("mistral", sliding_window=WINDOW)


def perturbed(model, place: int) -> np.ndarray:
    """How far the logits of each position of a row move when the token at ``place`` is another one."""
    row = proofs.rows_of(12)[0]
    other = [*row[:place], row[place] + 1, *row[place + 1 :]]
    return np.abs(proofs.logits_alone(model, row) - proofs.logits_alone(model, other)).max(axis=-1)


def test_a_token_reaches_as_far_as_the_windows_of_both_layers(model) -> None:
    moved = perturbed(model, place=2) > 1e-4
    reach = 2 + 2 * (WINDOW - 1)  # each of the two layers passes it on to WINDOW - 1 later positions
    assert moved.tolist() == [2 <= position <= reach for position in range(12)]


def test_paddlenlp_still_knows_no_window(model) -> None:
    """When this fails, paddlenlp has learned it: see whether the decoder can go."""
    ids = paddle.to_tensor(proofs.rows_of(12))
    other = ids.clone()
    other[0, 2] += 1
    with paddle.no_grad():
        assert float((model(ids)[0] - model(other)[0])[0, -1].abs().max()) > 1e-4


@pytest.mark.parametrize("window", [None, 64])
def test_short_rows_have_the_logits_of_paddlenlps_own_forward_pass(window: int | None) -> None:
    model = proofs.small("mistral", sliding_window=window)
    row = proofs.rows_of(12)[0]
    with paddle.no_grad():
        wanted = model(paddle.to_tensor([row]))[0][0].numpy()
    np.testing.assert_allclose(proofs.logits_alone(model, row), wanted, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side: str) -> None:
    assert proofs.padded_against_alone(model, side) < 1e-4


def test_steps_with_a_cache_equal_whole_rows(model) -> None:
    assert proofs.steps_against_full(model) < 1e-4
    assert proofs.steps_against_full(proofs.with_prefix(model)) < 1e-4


def test_packed_rows_equal_separate_rows(model) -> None:
    assert proofs.packed_against_separate(model) < 1e-5
    assert proofs.packed_against_separate(proofs.with_prefix(model)) < 1e-5


def test_a_prefix_is_seen_from_behind_the_window(model) -> None:
    tuned = proofs.with_prefix(model)
    row = proofs.rows_of(12)[0]
    found = proofs.logits_alone(tuned, row)
    weight = tuned.prefix_encoder[0].weight
    weight.set_value(weight + 1.0)
    assert (np.abs(proofs.logits_alone(tuned, row) - found).max(axis=-1) > 1e-4).all()


@pytest.mark.parametrize("prefix", [False, True])
def test_recompute_changes_no_gradient(model, prefix: bool) -> None:
    tuned = proofs.with_prefix(model) if prefix else model
    plain = proofs.gradients(tuned)
    model.mistral.enable_recompute = True
    assert proofs.gradients(tuned) == pytest.approx(plain, rel=1e-4)
    assert max(plain.values()) > 1e-3
    assert decoder_of(tuned).recomputes(0) is False  # only while training
