"""The family table: everything that differs between model families is a field of one row here, and nowhere else."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paddlesft.errors import ModelDirectoryError


@dataclass(frozen=True)
class Family:
    """What the other rooms need to know about one model family.

    Attributes:
        name: the family's name in messages and docs.
        model_types: values of ``model_type`` in config.json that belong to it.
        base_prefix: attribute of the causal LM that holds the decoder; also the first part of its tensors' names.
        hf_base_prefix: the same part in a Hugging Face directory.
        hf_architecture: value of ``architectures`` in a Hugging Face config.json.
        lora_target_modules: regular expressions over module names; every decoder Linear, the head excluded.
        prefix_postprocess: ``module:function`` that brings prefix keys/values into the family's cache layout.
        num_layers_key: the config's attribute for the number of decoder layers.
        num_heads_key: the config's attribute for the number of query heads.
        num_kv_heads_key: the config's attribute for the number of key/value heads; None when all heads have their own.
        context_key: the config's attribute for the number of positions the model knows.
        cache_sequence_axis: axis of the tokens in cached keys and values; axis 0 is the batch.
        packing: packed rows (block-diagonal mask, restarting positions) are exact.
        hf_import: Hugging Face directories can be converted (see hugging_face.py).
        status: "tested" (the suite trains, merges and generates with it) or "unproven".
    """

    name: str
    model_types: tuple[str, ...]
    base_prefix: str
    hf_base_prefix: str
    hf_architecture: str
    lora_target_modules: tuple[str, ...]
    prefix_postprocess: str
    num_layers_key: str = "num_hidden_layers"
    num_heads_key: str = "num_attention_heads"
    num_kv_heads_key: str | None = "num_key_value_heads"
    context_key: str = "max_position_embeddings"
    cache_sequence_axis: int = 1
    packing: bool = False
    hf_import: bool = False
    status: str = "unproven"

    def num_layers(self, config: Any) -> int:
        """Return the number of decoder layers."""
        return getattr(config, self.num_layers_key)

    def num_heads(self, config: Any) -> int:
        """Return the number of query heads."""
        return getattr(config, self.num_heads_key)

    def prefix_kv_heads(self, config: Any) -> int:
        """Return the number of key/value heads a prefix has to fill in each layer (right for grouped-query)."""
        shared = getattr(config, self.num_kv_heads_key, None) if self.num_kv_heads_key else None
        return shared or self.num_heads(config)

    def context_length(self, config: Any) -> int | None:
        """Return how many tokens a prompt and its reply may have together; None where the config does not say."""
        return getattr(config, self.context_key, None) or None

    def head_dim(self, config: Any) -> int:
        """Return the size of one attention head."""
        return getattr(config, "head_dim", None) or config.hidden_size // self.num_heads(config)

    def prefix_postprocess_function(self) -> Callable[..., Any]:
        """Import and return the function that ``prefix_postprocess`` names."""
        module, function = self.prefix_postprocess.split(":")
        return getattr(importlib.import_module(module), function)


FAMILIES = (
    Family(
        name="llama",
        model_types=("llama",),
        base_prefix="llama",
        hf_base_prefix="model",
        hf_architecture="LlamaForCausalLM",
        lora_target_modules=(
            ".*q_proj.*", ".*k_proj.*", ".*v_proj.*", ".*o_proj.*", ".*qkv_proj.*",
            ".*gate_proj.*", ".*up_proj.*", ".*down_proj.*", ".*gate_up_fused_proj.*",
        ),
        prefix_postprocess="paddlenlp.peft.prefix:llama_postprocess_past_key_value",
        packing=True,
        hf_import=True,
        status="tested",
    ),
)  # fmt: skip


def known_model_types() -> list[str]:
    """Return every ``model_type`` of the table, sorted."""
    return sorted(kind for family in FAMILIES for kind in family.model_types)


def family_of(config: Any, where: str = "config.json") -> Family:
    """Return the row of a model.

    Args:
        config: a PaddleNLP config, a model that has one, or the content of config.json.
        where: named in the error.

    Raises:
        ModelDirectoryError: the model's type is in no row.
    """
    config = getattr(config, "config", config)
    kind = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    found = f"model_type {kind!r}" if kind else "no model_type"
    raise ModelDirectoryError(
        f"{where} names {found}, which no family of this version covers. Known: {', '.join(known_model_types())}."
    )
