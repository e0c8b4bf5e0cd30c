"""Hugging Face directories of Qwen2 and Qwen2.5 models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.hf_layouts.config_entries import Entry, only, same, token_id
from paddlesft.models.hf_layouts.layout import Layout
from paddlesft.models.hf_layouts.llama_entries import check_head_size, decoder_sizes


def check(config: Mapping[str, Any], where: str) -> None:
    """Refuse what PaddleNLP's Qwen2 would ignore."""
    check_head_size(config, where)
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise ModelDirectoryError(
            f"{where}: layer_types has {', '.join(sorted(kinds))}; PaddleNLP's Qwen2 knows full_attention only."
        )


LAYOUT = Layout(
    family="qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    causal_lm="Qwen2ForCausalLM",
    paddle_model_type="qwen2",
    entries=(
        *decoder_sizes(max_positions=32768, kv_heads=32),
        only("hidden_act", "silu", "swish", why="no published Qwen2 computes anything else."),
        Entry(
            "use_sliding_window", "use_sliding_window", False, values={False: False},
            why="PaddleNLP's Qwen2 attends to the whole context, which gives other numbers beyond the window.",
        ),
        same("attention_dropout", 0.0),
        same("tie_word_embeddings", False),
        token_id("bos_token_id", None),
        token_id("eos_token_id", None),
        token_id("pad_token_id", None),
    ),
    rope_kinds=("default",),
    check=check,
)  # fmt: skip
