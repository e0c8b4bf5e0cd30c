"""An attribute that an OPT model does not have, and one that its config has."""

from __future__ import annotations

import pytest
from paddlenlp.transformers import OPTConfig, OPTForCausalLM

from paddlesft.quirks.opt_attributes import lack_unknown_attributes

SIZES = {"hidden_size": 32, "word_embed_proj_dim": 32, "intermediate_size": 32, "num_attention_heads": 4}


def test_opt_still_has_every_attribute_until_it_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails at its first assertion, paddlenlp has mended it and the quirk can go."""
    lookup = OPTForCausalLM.__getattr__
    monkeypatch.setattr(OPTForCausalLM, "__getattr__", getattr(lookup, "original", lookup))  # other tests load OPTs
    model = OPTForCausalLM(OPTConfig(vocab_size=96, num_hidden_layers=1, **SIZES))
    assert hasattr(model, "no_sync") and model.no_sync is None
    lack_unknown_attributes(model)
    lack_unknown_attributes(model)  # once more, as when another model is loaded
    assert not hasattr(model, "no_sync")
    with pytest.raises(AttributeError, match="'OPTForCausalLM' object has no attribute 'no_sync'"):
        model.no_sync  # noqa: B018
    assert model.word_embed_proj_dim == 32  # of the config
    assert model.decoder is model.opt.decoder
