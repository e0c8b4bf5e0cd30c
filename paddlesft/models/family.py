"""What a row of the family table says. The rows are in ``families.py``; nothing else asks for a model's type."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paddlesft.errors import ModelDirectoryError

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
        config_mark: an entry of config.json that tells it from another family of the same ``model_type``.
        causal_lm: class of ``paddlenlp.transformers`` that computes logits.
        config_class: its config class there.
        pipe_class: its pipeline-parallel class there; None where paddlenlp has none.
        base_prefix: attribute of the causal LM that holds the decoder; also the first part of its tensors' names.
        lora_target_modules: regular expressions over module names; every decoder Linear, the head excluded.
        decoder: ``module:class`` that calls the decoder, see ``models/decoders``: attention, positions, cache.
        step: ``module:class`` that computes one call over a cache, see ``models/steps``; generation, static graphs and
            ONNX go through it. None: generation calls the whole decoder, and there are no graphs.
        inputs: ``module:class`` that tells a step about its rows, see ``models/steps/inputs.py``.
        positions: how the model knows where a token stands, in words (for tables and docs).
        positions_end: there are no positions beyond ``context_key``: they are a table, learned or rotary.
        prefix_tuning: keys and values can be put in front of every layer's own.
        prefix_postprocess: ``module:function`` that brings prefix keys/values into the family's cache layout.
        prefix_refusal: why not, where ``prefix_tuning`` is false.
        packing: packed rows (block-diagonal mask, restarting positions) are exact.
        packing_refusal: why not, where ``packing`` is false.
        one_reply_per_row: the prompt attends in both directions, so that a row can train its last reply only.
        tokenizers: each kind of tokenizer that its models come with, and what to mind about it.
        chat_template: built-in template for tokenizers that bring none.
        needs_template: a text without the marks of a template is no prompt, so that ``chat_template`` is the default.
        token_ids: (config attribute, token) of special tokens that the decoder looks for; taken from the tokenizer in
            the model's directory where config.json lacks them.
        tensor_plan: ``module:function`` from the content of config.json to the names and shapes of its weights.
        tensor_parallel: paddlenlp has the mapping that splits its tensors.
        sequence_parallel: its paddlenlp model can divide activations by sequence under tensor parallelism.
        whole_vocabulary: a vocabulary that the tensor-parallel degree does not divide stays whole on every process;
            False: such a degree is impossible.
        quantization_refusal: which of its layers cannot be quantized, and why; empty where all can.
        hf_layout: ``module:name`` of the ``Layout`` of its Hugging Face directories, which are converted by it; None:
            they cannot be.
        hf_refusal: why not, and what to do instead, where ``hf_layout`` is None.
        num_layers_key: the config's attribute for the number of decoder layers.
        num_heads_key: the config's attribute for the number of query heads.
        num_kv_heads_key: the config's attribute for the number of key/value heads; None when all heads have their own.
        context_key: the config's attribute for the number of positions the model knows; None without such a limit.
        cache_batch_axis: axis of the rows in cached tensors.
        cache_sequence_axis: axis of the tokens in cached tensors.
        config_fixes: ``module:function``s called with the config before the model is built.
        fixes: ``module:function``s called with the model after loading.
        tie_head: ``module:function`` called after loading where paddlenlp does not tie the head to the embedding, with
            the model and a function that says whether its directory holds a tensor.
        status: "tested" (the suite trains, merges and generates with it) or "unproven".
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    causal_lm: str
    config_class: str
    base_prefix: str
    lora_target_modules: tuple[str, ...]
    config_mark: str | None = None
    pipe_class: str | None = None
    decoder: str = "paddlesft.models.decoders.causal:CausalDecoder"
    step: str | None = None
    inputs: str = "paddlesft.models.steps.inputs:CausalInputs"
    positions: str = "rotary"
    positions_end: bool = False
    prefix_tuning: bool = True
    prefix_postprocess: str = "paddlenlp.peft.prefix:llama_postprocess_past_key_value"
    prefix_refusal: str = ""
    packing: bool = False
    packing_refusal: str = ""
    one_reply_per_row: bool = False
    tokenizers: tuple[str, ...] = ()
    chat_template: str = "plain"
    needs_template: bool = False
    token_ids: tuple[tuple[str, str], ...] = ()
    tensor_plan: str = ""
    tensor_parallel: bool = True
    sequence_parallel: bool = False
    whole_vocabulary: bool = False
    quantization_refusal: str = ""
    hf_layout: str | None = None
    hf_refusal: str = ""
    num_layers_key: str = "num_hidden_layers"
    num_heads_key: str = "num_attention_heads"
    num_kv_heads_key: str | None = "num_key_value_heads"
    context_key: str | None = "max_position_embeddings"
    cache_batch_axis: int = 0
    cache_sequence_axis: int = 1
    config_fixes: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()
    tie_head: str | None = None
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

    @property
    def default_template(self) -> str:
        """The template of a run that names none, for tokenizers that bring none."""
        return self.chat_template if self.needs_template else "plain"

    def head_dim(self, config: Any) -> int:
        """Return the size of one attention head."""
        return getattr(config, "head_dim", None) or config.hidden_size // self.num_heads(config)

    def prefix_postprocess_function(self) -> Callable[..., Any]:
        """Import and return the function that ``prefix_postprocess`` names."""
        return imported(self.prefix_postprocess)

    def decoder_class(self) -> Callable[..., Any]:
        """Import and return the class that ``decoder`` names."""
        return imported(self.decoder)

    def step_class(self) -> Callable[..., Any]:
        """Import and return the class that ``step`` names."""
        return imported(self.step)

    def step_inputs(self) -> Callable[..., Any]:
        """Import and return the class that ``inputs`` names."""
        return imported(self.inputs)

    def plan(self, config: Mapping[str, Any]) -> Any:
        """Return the ``TensorPlan`` of the content of a config.json in Paddle's layout; does not load paddle."""
        return imported(self.tensor_plan)(config)

    def hugging_face_layout(self) -> Any:
        """Import and return the ``Layout`` that ``hf_layout`` names.

        Raises:
            ModelDirectoryError: directories of this family cannot be converted.
        """
        if self.hf_layout is None:
            raise ModelDirectoryError(
                f"Models of the family {self.name} cannot be converted from or to Hugging Face: {self.hf_refusal}"
            )
        return imported(self.hf_layout)

    def fix_config(self, config: Any) -> None:
        """Apply ``config_fixes`` to a PaddleNLP config, in place."""
        for fix in self.config_fixes:
            imported(fix)(config)

    def fix_model(self, model: Any, is_stored: Callable[[str], bool]) -> None:
        """Apply ``fixes`` and ``tie_head`` to a model, in place.

        Args:
            model: with the weights of a directory.
            is_stored: says whether the directory holds a tensor.
        """
        if self.tie_head:
            imported(self.tie_head)(model, is_stored)
        for fix in self.fixes:
            imported(fix)(model)
