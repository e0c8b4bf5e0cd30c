"""Qwen 1: positions are said, and what PaddleNLP does without."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlesft.errors import ConfigError
from paddlesft.models.decoders import decoder_of
from tests.models.decoders import proofs


def test_positions_that_are_not_said_follow_from_mask_and_cache() -> None:
    model = proofs.with_prefix(proofs.small("qwen"))
    decoder, row = decoder_of(model), proofs.rows_of(9)[0]
    wanted = proofs.logits_alone(model, row)
    mask = paddle.to_tensor([[0] * 4 + [1] * 9])
    padding = [proofs.PADDING] * 4
    with paddle.no_grad():
        hidden, _ = decoder.run(paddle.to_tensor([padding + row]), mask)
        np.testing.assert_allclose(decoder.logits(hidden)[0, 4:].numpy(), wanted, atol=1e-5)
        for left in (0, 4):
            ids = paddle.to_tensor([padding[:left] + row])
            _, cache = decoder.run(ids[:, :-1], mask[:, 4 - left : -1], use_cache=True)
            hidden, _ = decoder.run(ids[:, -1:], mask[:, 4 - left :] if left else None, cache=cache, use_cache=True)
            np.testing.assert_allclose(decoder.logits(hidden)[0, -1].numpy(), wanted[-1], atol=1e-5)


def test_paddlenlp_still_begins_at_0_in_every_call() -> None:
    """When this fails, paddlenlp takes the cache into account: see whether the decoder can go."""
    model, row = proofs.small("qwen"), proofs.rows_of(9)[0]
    with paddle.no_grad():
        _, cache = model.qwen(paddle.to_tensor([row[:8]]), use_cache=True)[:2]
        found = model(paddle.to_tensor([row[8:]]), past_key_values=cache)[0]
    assert np.abs(found[0, -1].numpy() - proofs.logits_alone(model, row)[-1]).max() > 1e-3


def test_single_layers_cannot_be_left_out_of_recompute() -> None:
    model = proofs.small("qwen")
    model.config.recompute, model.config.no_recompute_layers = True, [1]
    with pytest.raises(ConfigError, match="no_recompute_layers: PaddleNLP's Qwen computes all of its layers again or"):
        proofs.logits_alone(model, [5, 6])
