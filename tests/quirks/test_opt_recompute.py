"""The switch that PaddleNLP's trainer looks for when it turns recompute on. That it works: test_conventions.py."""

from __future__ import annotations

from typing import Any

from paddlenlp.transformers import OPTConfig, OPTForCausalLM

from paddlesft.quirks.opt_recompute import offer_recompute


def switches(model: Any) -> list[str]:
    return [name for name, layer in model.named_sublayers() if hasattr(layer, "enable_recompute")]


def test_opt_still_has_no_switch() -> None:
    """When this fails, paddlenlp can recompute OPT: see whether the quirk can go."""
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "intermediate_size": 32, "num_attention_heads": 4}
    model = OPTForCausalLM(OPTConfig(vocab_size=96, num_hidden_layers=1, **sizes))
    assert switches(model) == []
    offer_recompute(model)
    assert switches(model) == ["opt.decoder"]
    model.opt.decoder.enable_recompute = True
    offer_recompute(model)  # once more, as for a model that is loaded while it trains
    assert model.opt.decoder.enable_recompute is True
