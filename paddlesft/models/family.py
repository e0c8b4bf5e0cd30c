"""What a row of the family table says. The rows are in ``families.py``; nothing else asks for a model's type."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LLAMA_LORA_TARGETS = (
    ".*q_proj.*", ".*k_proj.*", ".*v_proj.*", ".*o_proj.*", ".*qkv_proj.*",
    ".*gate_proj.*", ".*up_proj.*", ".*down_proj.*", ".*gate_up_fused_proj.*",
)  # fmt: skip


def imported(path: str) -> Any:
    """Import what ``module:name`` says."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Family:
    """What the other rooms need to know about one model family.

    Attributes:
        name: the family's name in messages, docs, tests and ``configs/<name>/``.
        title: the models people know it by.
        model_types: values of ``model_type`` in config.json that belong to it.
        causal_lm: class of ``paddlenlp.transformers`` that computes logits.
        config_class: its config class there.
        pipe_class: its pipeline-parallel class there; None where paddlenlp has none.
        base_prefix: attribute of the causal LM that holds the decoder; also the first part of its tensors' names.
        lora_target_modules: regular expressions over module names; every decoder Linear, the head excluded.
        decoder: ``module:class`` that calls the decoder, see ``models/decoders``: attention, positions, cache.
        positions: how the model knows where a token stands, in words (for tables and docs).
        prefix_tuning: keys and values can be put in front of every layer's own.
        prefix_postprocess: ``module:function`` that brings prefix keys/values into the family's cache layout.
        prefix_refusal: why not, where ``prefix_tuning`` is false.
        packing: packed rows (block-diagonal mask, restarting positions) are exact.
        packing_refusal: why not, where ``packing`` is false.
        one_reply_per_row: the prompt attends in both directions, so that a row can train its last reply only.
        tokenizers: each kind of tokenizer that its models come with, and what to mind about it.
        chat_template: built-in template for tokenizers that bring none.
        tensor_parallel: paddlenlp has the mapping that splits its tensors.
        quantization: what PaddleSlim's layers cover, in words; empty where unknown.
        hf_base_prefix: first part of the tensors' names in a Hugging Face directory.
        hf_architecture: value of ``architectures`` in a Hugging Face config.json.
        hf_import: Hugging Face directories can be converted (see hugging_face.py).
        num_layers_key: the config's attribute for the number of decoder layers.
        num_heads_key: the config's attribute for the number of query heads.
        num_kv_heads_key: the config's attribute for the number of key/value heads; None when all heads have their own.
        context_key: the config's attribute for the number of positions the model knows; None without such a limit.
        cache_batch_axis: axis of the rows in cached tensors.
        cache_sequence_axis: axis of the tokens in cached tensors.
        config_fixes: ``module:function``s called with the config before the model is built.
        fixes: ``module:function``s called with the model after loading.
        status: "tested" (the suite trains, merges and generates with it) or "unproven".
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    causal_lm: str
    config_class: str
    base_prefix: str
    lora_target_modules: tuple[str, ...]
    pipe_class: str | None = None
    decoder: str = "paddlesft.models.decoders.causal:CausalDecoder"
    positions: str = "rotary"
    prefix_tuning: bool = True
    prefix_postprocess: str = "paddlenlp.peft.prefix:llama_postprocess_past_key_value"
    prefix_refusal: str = ""
    packing: bool = False
    packing_refusal: str = ""
    one_reply_per_row: bool = False
    tokenizers: tuple[str, ...] = ()
    chat_template: str = "plain"
    tensor_parallel: bool = True
    quantization: str = ""
    hf_base_prefix: str = "model"
    hf_architecture: str | None = None
    hf_import: bool = False
    num_layers_key: str = "num_hidden_layers"
    num_heads_key: str = "num_attention_heads"
    num_kv_heads_key: str | None = "num_key_value_heads"
    context_key: str | None = "max_position_embeddings"
    cache_batch_axis: int = 0
    cache_sequence_axis: int = 1
    config_fixes: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()
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
        return (getattr(config, self.context_key, None) if self.context_key else None) or None

    def head_dim(self, config: Any) -> int:
        """Return the size of one attention head."""
        return getattr(config, "head_dim", None) or config.hidden_size // self.num_heads(config)

    def prefix_postprocess_function(self) -> Callable[..., Any]:
        """Import and return the function that ``prefix_postprocess`` names."""
        return imported(self.prefix_postprocess)

    def decoder_class(self) -> Callable[..., Any]:
        """Import and return the class that ``decoder`` names."""
        return imported(self.decoder)

    def fix_config(self, config: Any) -> None:
        """Apply ``config_fixes`` to a PaddleNLP config, in place."""
        for fix in self.config_fixes:
            imported(fix)(config)

    def fix_model(self, model: Any) -> None:
        """Apply ``fixes`` to a model, in place."""
        for fix in self.fixes:
            imported(fix)(model)
