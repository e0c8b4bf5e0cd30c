"""The padding token of a Mistral model has its stored embedding like every other token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import paddle

from paddlesft.models import load_config, load_model


def test_padding_has_its_stored_row(tiny_family: Callable[[str], Path]) -> None:
    directory = tiny_family("mistral")
    token = load_config(directory).pad_token_id
    assert token is not None, "the tiny model must pad with a token of its config, else this shows nothing"
    table = load_model(directory).mistral.embed_tokens
    stored = table.weight[token]
    assert bool((table(paddle.to_tensor([token]))[0] == stored).all()) and float(stored.abs().sum()) > 0


def test_upstream_gives_zeros() -> None:
    """When this fails, Paddle or paddlenlp gives the stored row, and the module can go."""
    from paddlenlp.transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    table = MistralForCausalLM(
        MistralConfig(vocab_size=20, num_hidden_layers=1, pad_token_id=3, **sizes)
    ).mistral.embed_tokens
    table.weight.set_value(paddle.ones_like(table.weight))
    assert table(paddle.to_tensor([3, 4])).sum(-1).tolist() == [0.0, 32.0]
