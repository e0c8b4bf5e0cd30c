"""Tiny random Llama models for the comparison of the fast layers with upstream's."""

from __future__ import annotations

from collections.abc import Callable

import paddle
import pytest
from paddlenlp.peft import LoRAConfig, LoRAModel
from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM

TARGETS = [f".*{name}_proj.*" for name in ("q", "k", "v", "o", "gate", "up", "down")]


def tiny_llama_model(seed: int = 3, **overrides: object) -> LlamaForCausalLM:
    """Build a random Llama in float32: hidden 64, 2 layers, 4 heads, 2 key/value heads, vocabulary 97."""
    settings: dict[str, object] = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 144,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "seq_length": 256,
        "tie_word_embeddings": False,
        "dtype": "float32",
        # Large enough for attention and gates to be far from uniform.
        "initializer_range": 0.2,
        **overrides,
    }
    paddle.seed(seed)
    config = LlamaConfig(**settings)
    # The base class's constructor resets some of them.
    for name, value in settings.items():
        setattr(config, name, value)
    return LlamaForCausalLM(config)


def with_lora(model: LlamaForCausalLM, dropout: float = 0.0, rank: int = 4) -> LoRAModel:
    """Wrap a model with LoRA on every linear layer; both matrices random, so that both have gradients."""
    config = LoRAConfig(target_modules=TARGETS, r=rank, lora_alpha=8, lora_dropout=dropout)
    wrapped = LoRAModel(model, config)
    wrapped.mark_only_lora_as_trainable()
    paddle.seed(11)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.set_value(paddle.randn(parameter.shape) * 0.1)
    wrapped.train()
    return wrapped


@pytest.fixture
def build() -> Callable[..., LlamaForCausalLM]:
    return tiny_llama_model


@pytest.fixture
def lora() -> Callable[..., LoRAModel]:
    return with_lora
