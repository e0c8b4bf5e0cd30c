"""What the configs of LLaMA and of the families built like it have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.hf_layouts.config_entries import Entry, only, same

NO_BIAS = only("attention_bias", False, why="PaddleNLP's model has no biases there.")


def decoder_sizes(max_positions: int, kv_heads: int | None = None) -> tuple[Entry, ...]:
    """Return the entries for sizes, norms and dropout.

    Args:
        max_positions: what transformers takes when the config does not say.
        kv_heads: the same for the number of key/value heads; None: as many as query heads.
    """
    return (
        same("vocab_size"),
        same("hidden_size"),
        same("intermediate_size"),
        same("num_hidden_layers"),
        same("num_attention_heads"),
        same("num_key_value_heads", kv_heads or (lambda out: out["num_attention_heads"])),
        same("max_position_embeddings", max_positions),
        same("rms_norm_eps", 1e-6),
        same("initializer_range", 0.02),
    )


def check_head_size(config: Mapping[str, Any], where: str) -> None:
    """Refuse heads of another size than hidden size / heads, which PaddleNLP's models take for granted."""
    usual = config["hidden_size"] // config["num_attention_heads"]
    if config.get("head_dim") not in (None, usual):
        raise ModelDirectoryError(
            f"{where}: head_dim is {config['head_dim']}; only hidden_size / num_attention_heads = {usual} works."
        )
