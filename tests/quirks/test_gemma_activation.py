"""Gemma computes the gelu that its config names, the tanh form where it names none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F
import pytest

from paddlesft.models import load_model
from paddlesft.quirks import gemma_activation


def gated(model: Any, approximate: bool) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return what the first layer's MLP gives, and what it should give."""
    mlp = model.gemma.layers[0].mlp
    x = paddle.linspace(-4, 4, 2 * model.config.hidden_size).reshape([2, -1])
    with paddle.no_grad():
        return mlp(x), mlp.down_proj(F.gelu(mlp.gate_proj(x), approximate=approximate) * mlp.up_proj(x))


def test_loaded_models_compute_the_tanh_form(tiny_family: Callable[[str], Path]) -> None:
    model = load_model(tiny_family("gemma"))
    assert model.config.hidden_activation == "gelu_pytorch_tanh"
    found, expected = gated(model, approximate=True)
    assert bool((found == expected).all())


def test_a_config_that_says_gelu_is_followed(tiny_family: Callable[[str], Path]) -> None:
    model = load_model(tiny_family("gemma"))
    for layer in model.gemma.layers:
        del layer.mlp.forward
    model.config.hidden_activation = "gelu"
    gemma_activation.follow_activation(model)
    found, expected = gated(model, approximate=False)
    assert bool((found == expected).all())


@pytest.mark.parametrize("entry", ["hidden_act", "hidden_activation"])
def test_upstream_reads_neither_entry(entry: str) -> None:
    """When this fails, paddlenlp follows the config, and the module can go."""
    from paddlenlp.transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, initializer_range=0.5, **{entry: "gelu_pytorch_tanh"},
    )  # fmt: skip
    found, expected = gated(GemmaForCausalLM(config), approximate=False)
    assert bool((found == expected).all())
