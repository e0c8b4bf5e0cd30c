"""New BLOOM models of PaddleNLP have zeros for weights."""

from __future__ import annotations

from typing import Any

import pytest
from paddlenlp.transformers import BloomConfig, BloomForCausalLM
from paddlenlp.transformers.bloom.modeling import BloomPreTrainedModel

from paddlesft.models.families import family_named
from paddlesft.quirks.bloom_zeroed_weights import UPSTREAM


def new_model() -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=4))


def test_upstream_still_zeroes_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, paddlenlp draws them: remove the quirk."""
    monkeypatch.setattr(BloomPreTrainedModel, "_init_weights", UPSTREAM)
    assert float(new_model().bloom.h[0].mlp.dense_h_to_4h.weight.abs().max()) == 0


def test_new_models_have_weights_and_no_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BloomPreTrainedModel, "_init_weights", UPSTREAM)
    family_named("bloom").fix_config(None)
    model = new_model()
    for linear in (model.bloom.h[0].mlp.dense_h_to_4h, model.bloom.h[0].self_attention.query_key_value):
        assert float(linear.weight.std()) == pytest.approx(0.02, rel=0.1)
        assert float(linear.bias.abs().max()) == 0
    assert float(model.bloom.word_embeddings.weight.std()) == pytest.approx(0.02, rel=0.1)
