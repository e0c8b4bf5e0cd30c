"""OPT: positions that PaddleNLP takes from the mask, and what that cannot express."""

from __future__ import annotations

import numpy as np
import paddle

from paddlesft.models.decoders import decoder_of
from tests.models.decoders import proofs


def test_positions_begin_at_the_third_row_of_the_table() -> None:
    model, row = proofs.small("opt"), proofs.rows_of(5)[0]
    wanted = proofs.logits_alone(model, row)
    table = model.opt.embeddings.position_embeddings.weight
    for position, moves in {0: False, 1: False, 2: True, 6: True, 7: False}.items():
        kept = table[position].clone()
        with paddle.no_grad():
            table[position] = -kept
        assert bool(np.abs(proofs.logits_alone(model, row) - wanted).max() > 1e-3) is moves, position
        with paddle.no_grad():
            table[position] = kept


def test_a_cache_of_plain_pairs_is_used() -> None:
    model, row = proofs.small("opt"), proofs.rows_of(7)[0]
    decoder = decoder_of(model)
    with paddle.no_grad():
        _, cache = decoder.run(paddle.to_tensor([row[:6]]), use_cache=True)
        assert [type(pair) for pair in cache] == [tuple, tuple]
        hidden, _ = decoder.run(
            paddle.to_tensor([row[6:]]), position_ids=paddle.to_tensor([[6]]), cache=cache, use_cache=True
        )
        found = decoder.logits(hidden)[0, 0].numpy()
    np.testing.assert_allclose(found, proofs.logits_alone(model, row)[6], atol=1e-5)


def test_paddlenlp_still_counts_the_prefix_among_the_positions() -> None:
    """When this fails, paddlenlp's OPT takes positions: see whether our loop over the layers can go."""
    tuned, row = proofs.with_prefix(proofs.small("opt")), proofs.rows_of(6)[0]
    layer = tuned.model.opt.decoder.layers[0].self_attn
    cache = [layer.Cache(keys, values) for keys, values in tuned._get_past_key_values(1)]
    with paddle.no_grad():
        found = tuned.model(paddle.to_tensor([row]), cache=cache).numpy()
    assert np.abs(found[0] - proofs.logits_alone(tuned, row)).max() > 1e-3
