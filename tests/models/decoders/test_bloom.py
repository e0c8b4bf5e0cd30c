"""BLOOM: ALiBi, the biases of keys by their distance."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddlenlp.transformers.bloom.modeling import build_alibi_tensor

from paddlesft.errors import ConfigError
from paddlesft.models.decoders import decoder_of
from paddlesft.models.decoders.bloom import slopes
from tests.models.decoders import proofs


@pytest.mark.parametrize("heads", [1, 2, 4, 6, 12, 14, 16, 20, 71, 112])
def test_slopes_are_those_of_paddlenlp(heads: int) -> None:
    wanted = build_alibi_tensor(paddle.ones([1, 2], dtype="bool"), heads, paddle.float32)[0, :, 1]
    np.testing.assert_allclose(slopes(heads), wanted.numpy(), rtol=1e-6)


def test_slopes_of_eight_heads_are_those_of_the_paper() -> None:
    assert slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


def test_positions_follow_the_prefix_and_leave_padding_out() -> None:
    decoder = decoder_of(proofs.with_prefix(proofs.small("bloom"), tokens=2))
    padded = paddle.to_tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 0]])
    assert decoder.key_positions(padded, None).tolist() == [[0, 1, 1, 1, 2, 3], [0, 1, 2, 3, 4, 4]]
    packed = paddle.to_tensor([[0, 1, 2, 0, 1, 0]])
    assert decoder.key_positions(decoder.packed_attention_mask(packed + 1), packed).tolist() == [
        [0, 1, 2, 3, 4, 2, 3, 2]
    ]


def test_long_sequence_strategies_are_refused() -> None:
    model = proofs.small("bloom", use_long_sequence_strategies=True)
    with pytest.raises(ConfigError, match="use_long_sequence_strategies: true is not supported for BLOOM"):
        decoder_of(model).run(paddle.to_tensor([[5, 6]]))


def test_paddlenlp_still_moves_the_prefix_away_from_packed_rows() -> None:
    """When this fails, paddlenlp restarts ALiBi in packed rows: see whether the decoder's own bias can go."""
    tuned = proofs.with_prefix(proofs.small("bloom"), tokens=3)
    first, second = proofs.rows_of(40, 6)
    mask = decoder_of(tuned).packed_attention_mask(paddle.to_tensor([[1] * len(first) + [2] * len(second)]))
    with paddle.no_grad():
        output = tuned.model.bloom(
            paddle.to_tensor([first + second]), attention_mask=mask, past_key_values=tuned._get_past_key_values(1)
        )
        found = decoder_of(tuned).logits(output[0][:, len(first) :])[0].numpy()
    assert np.abs(found - proofs.logits_alone(tuned, second)).max() > 1e-3
