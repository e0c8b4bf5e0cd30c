"""GPT: learned positions and where they end."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlesft.errors import ConfigError, UserError
from paddlesft.models.decoders import decoder_of
from tests.models.decoders import proofs


@pytest.mark.parametrize("family", ["gpt", "opt"])
def test_a_row_may_be_as_long_as_the_table_of_positions_and_no_longer(family: str) -> None:
    model = proofs.small(family, max_position_embeddings=12)
    fits, longer = proofs.rows_of(12, 13)
    tuned = proofs.with_prefix(model)  # its tokens take no positions
    for one in (model, tuned):
        assert np.isfinite(proofs.logits_alone(one, fits)).all()
        with pytest.raises(UserError, match=r"A row has 13 tokens, but this model knows 12 .*max_length to 12"):
            proofs.logits_alone(one, longer)


@pytest.mark.parametrize("family", ["gpt", "opt"])
def test_padding_and_packing_reach_beyond_the_table_where_rows_do_not(family: str) -> None:
    model = proofs.small(family, max_position_embeddings=24)
    assert proofs.packed_against_separate(model) < 1e-5  # packs of 60 tokens, rows of 23 and less
    decoder, row = decoder_of(model), proofs.rows_of(20)[0]
    ids = paddle.to_tensor([row + [proofs.PADDING] * 10])
    mask = paddle.to_tensor([[1] * 20 + [0] * 10])
    with paddle.no_grad():
        found = decoder.logits(decoder.run(ids, mask)[0])[0, :20].numpy()
    np.testing.assert_allclose(found, proofs.logits_alone(model, row), atol=1e-5)


def test_flash_attention_is_refused() -> None:
    model = proofs.small("gpt")
    model.config.use_flash_attention = True
    with pytest.raises(ConfigError, match="use_flash_attention: true, but PaddleNLP's GPT leaves the mask out"):
        proofs.logits_alone(model, [5, 6])


def test_paddlenlp_still_counts_the_prefix_and_ends_its_causal_table_early() -> None:
    """When this fails, paddlenlp's loop over the layers has learned about prefixes: see whether ours can go."""
    tuned = proofs.with_prefix(proofs.small("gpt", max_position_embeddings=12), tokens=3)
    short, full = proofs.rows_of(6, 12)
    cache = tuned._get_past_key_values(1)
    with paddle.no_grad():
        found = tuned.model(paddle.to_tensor([short]), past_key_values=cache)[0]
        assert float((found - paddle.to_tensor(proofs.logits_alone(tuned, short))).abs().max()) > 1e-3
        positions = paddle.arange(12).unsqueeze(0)
        with pytest.raises(ValueError):
            tuned.model(paddle.to_tensor([full]), position_ids=positions, past_key_values=cache)


def test_paddlenlp_still_recomputes_nothing_at_the_usual_granularity() -> None:
    """When this fails, ``recompute_granularity: full`` works upstream."""
    model, calls = proofs.small("gpt"), []
    assert model.config.recompute_granularity == "full"
    model.gpt.decoder.layers[1].register_forward_post_hook(lambda layer, inputs, output: calls.append(1) and None)
    model.train()
    model.recompute_enable()
    model(paddle.to_tensor([[5, 6, 7]])).sum().backward()
    assert len(calls) == 1
