"""Tiny random models for tests of breadth; truth is tested on the real model."""

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


def write_tiny_llama(path: Path, tokenizer_from: Path, seed: int = 7, **overrides: object) -> Path:
    """Write a random Llama model directory.

    Args:
        path: the directory to create.
        tokenizer_from: a model directory whose tokenizer (and vocabulary size) is used.
        seed: seed of the random weights.
        overrides: values of ``LlamaConfig`` to change.

    Returns:
        ``path``.
    """
    import paddle
    from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM

    from paddlesft.models import load_config

    base = load_config(tokenizer_from)
    paddle.seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": base.vocab_size,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "seq_length": 512,
            "bos_token_id": base.bos_token_id,
            "eos_token_id": base.eos_token_id,
            "pad_token_id": base.pad_token_id,
            "tie_word_embeddings": False,
            "dtype": "float32",
            **overrides,
        }
    )
    model = LlamaForCausalLM(config)
    path.mkdir(parents=True)
    model.save_pretrained(str(path), safe_serialization=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, path / name)
    return path
