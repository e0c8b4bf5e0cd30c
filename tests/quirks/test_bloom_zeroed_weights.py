"""New BLOOM models of PaddleNLP have zeros for weights."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from paddlenlp.transformers import BloomConfig
from paddlenlp.transformers.bloom import modeling

from paddlesft.models.families import family_named

CONFIG = {"vocab_size": 96, "hidden_size": 32, "n_layer": 1, "n_head": 4}


def untouched() -> Any:
    """Return a second copy of paddlenlp's module; the first may have been mended by another test already."""
    spec = importlib.util.spec_from_file_location("paddlenlp.transformers.bloom.untouched", modeling.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_upstream_still_zeroes_weights() -> None:
    """When this fails, paddlenlp draws them: remove the quirk."""
    model = untouched().BloomForCausalLM(BloomConfig(**CONFIG))
    assert float(model.bloom.h[0].mlp.dense_h_to_4h.weight.abs().max()) == 0


def test_new_models_have_weights_and_no_biases() -> None:
    config = BloomConfig(**CONFIG)
    family_named("bloom").fix_config(config)
    model = modeling.BloomForCausalLM(config)
    for linear in (model.bloom.h[0].mlp.dense_h_to_4h, model.bloom.h[0].self_attention.query_key_value):
        assert float(linear.weight.std()) == pytest.approx(0.02, rel=0.1)
        assert float(linear.bias.abs().max()) == 0
    assert float(model.bloom.word_embeddings.weight.std()) == pytest.approx(0.02, rel=0.1)
