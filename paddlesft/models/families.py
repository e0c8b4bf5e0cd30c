"""The family table: everything that differs between model families is a field of one row here, and nowhere else."""

from __future__ import annotations

from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.family import LLAMA_LORA_TARGETS, Family

GLM_LORA_TARGETS = (".*query_key_value.*", ".*dense.*", ".*dense_h_to_4h.*", ".*dense_4h_to_h.*")

PADDLE_MIRRORS = (
    "they are published as pickles, with code of their own that is no part of transformers. Take PaddleNLP's copy of "
    "the model, which is in Paddle's layout already: bos:NAME, for example bos:THUDM/chatglm-6b."
)

FAMILIES = (
    Family(
        name="llama",
        step="paddlesft.models.steps.llama:LlamaStep",
        title="LLaMA 1, 2, 3 (and models of the same architecture: Vicuna, Baichuan-7B, SmolLM2, ...)",
        model_types=("llama",),
        causal_lm="LlamaForCausalLM",
        config_class="LlamaConfig",
        pipe_class="LlamaForCausalLMPipe",
        base_prefix="llama",
        tensor_plan="paddlesft.models.tensor_plans:llama",
        sequence_parallel=True,
        whole_vocabulary=True,
        lora_target_modules=LLAMA_LORA_TARGETS,
        packing=True,
        tokenizers=(
            "tokenizer.json (LLaMA 3, SmolLM2): exact as it is",
            "tokenizer.model (SentencePiece; LLaMA 1, 2): puts <s> before a text; no padding token, so </s> pads",
            "tokenizer.model with Llama3Tokenizer (ranks): <|eot_id|> ends a turn, <|end_of_text|> a text, and it pads",
        ),
        fixes=(
            "paddlesft.quirks.llama_position_tables:extend_when_needed",
            "paddlesft.quirks.flash_attention_mask:keep_mask",
        ),
        hf_layout="paddlesft.models.hf_layouts.llama:LAYOUT",
        status="tested",
    ),
    Family(
        name="qwen2",
        step="paddlesft.models.steps.llama:LlamaStep",
        title="Qwen2, Qwen2.5",
        model_types=("qwen2",),
        causal_lm="Qwen2ForCausalLM",
        config_class="Qwen2Config",
        pipe_class="Qwen2ForCausalLMPipe",
        base_prefix="qwen2",
        tensor_plan="paddlesft.models.tensor_plans:qwen2",
        sequence_parallel=True,
        whole_vocabulary=True,
        lora_target_modules=LLAMA_LORA_TARGETS,
        prefix_postprocess="paddlenlp.peft.prefix:qwen_postprocess_past_key_value",
        packing=True,
        tokenizers=(
            "tokenizer.json: exact as it is",
            "vocab.json and merges.txt (Qwen2Tokenizer): no begin-of-sequence; accents are composed (NFC)",
        ),
        chat_template="qwen",
        config_fixes=("paddlesft.quirks.qwen2_sliding_window:refuse_sliding_window",),
        fixes=("paddlesft.quirks.flash_attention_mask:keep_mask",),
        hf_layout="paddlesft.models.hf_layouts.qwen2:LAYOUT",
        status="tested",
    ),
    Family(
        name="mistral",
        step="paddlesft.models.steps.llama:MistralStep",
        inputs="paddlesft.models.steps.inputs:SlidingWindowInputs",
        title="Mistral 7B",
        model_types=("mistral",),
        causal_lm="MistralForCausalLM",
        config_class="MistralConfig",
        base_prefix="mistral",
        tensor_plan="paddlesft.models.tensor_plans:mistral",
        lora_target_modules=LLAMA_LORA_TARGETS,
        prefix_postprocess="paddlenlp.peft.prefix:mistral_postprocess_past_key_value",
        decoder="paddlesft.models.decoders.mistral:MistralDecoder",
        positions="rotary, within a sliding window",
        packing=True,
        tokenizers=("tokenizer.json or tokenizer.model (SentencePiece): puts <s> before a text; </s> ends and pads",),
        chat_template="llama2",
        fixes=("paddlesft.quirks.mistral_padding_embedding:embed_padding",),
        hf_layout="paddlesft.models.hf_layouts.mistral:LAYOUT",
        cache_sequence_axis=2,
        status="tested",
    ),
    Family(
        name="gemma",
        step="paddlesft.models.steps.llama:GemmaStep",
        title="Gemma 2B, 7B",
        model_types=("gemma",),
        causal_lm="GemmaForCausalLM",
        config_class="GemmaConfig",
        pipe_class="GemmaForCausalLMPipe",
        base_prefix="gemma",
        tensor_plan="paddlesft.models.tensor_plans:gemma",
        sequence_parallel=True,
        whole_vocabulary=True,
        lora_target_modules=LLAMA_LORA_TARGETS,
        packing=True,
        tokenizers=(
            "tokenizer.json or tokenizer.model (SentencePiece): puts <bos> before a text; <end_of_turn> ends a turn, "
            "<eos> a text",
        ),
        config_fixes=("paddlesft.quirks.gemma_activation:name_activation",),
        fixes=(
            "paddlesft.quirks.gemma_activation:follow_activation",
            "paddlesft.quirks.gemma_sequence_parallel:embed_first",
        ),
        hf_layout="paddlesft.models.hf_layouts.gemma:LAYOUT",
        status="tested",
    ),
    Family(
        name="bloom",
        step="paddlesft.models.steps.bloom:BloomStep",
        title="BLOOM, BLOOMZ",
        model_types=("bloom",),
        causal_lm="BloomForCausalLM",
        config_class="BloomConfig",
        base_prefix="bloom",
        tensor_plan="paddlesft.models.tensor_plans:bloom",
        lora_target_modules=GLM_LORA_TARGETS,
        prefix_postprocess="paddlenlp.peft.prefix:bloom_postprocess_past_key_value",
        decoder="paddlesft.models.decoders.bloom:BloomDecoder",
        positions="ALiBi (no limit)",
        packing=True,
        tokenizers=(
            "tokenizer.json: exact as it is",
            "vocab.json and merges.txt (BloomTokenizer): splits texts as GPT-2 does, unlike the published one",
        ),
        config_fixes=("paddlesft.quirks.bloom_zeroed_weights:draw_weights",),
        hf_layout="paddlesft.models.hf_layouts.bloom:LAYOUT",
        num_layers_key="n_layer",
        num_heads_key="n_head",
        num_kv_heads_key=None,
        context_key=None,
        status="tested",
    ),
    Family(
        name="gpt",
        step="paddlesft.models.steps.learned_positions:GPTStep",
        title="GPT-2, GPT-3",
        model_types=("gpt", "gpt2"),
        causal_lm="GPTForCausalLM",
        config_class="GPTConfig",
        pipe_class="GPTForCausalLMPipe",
        base_prefix="gpt",
        tensor_plan="paddlesft.models.tensor_plans:gpt",
        sequence_parallel=True,
        lora_target_modules=(
            ".*qkv_proj.*", ".*q_proj.*", ".*k_proj.*", ".*v_proj.*", ".*linear1.*", ".*linear2.*", ".*out_proj.*",
        ),
        decoder="paddlesft.models.decoders.gpt:GPTDecoder",
        positions="learned; none beyond max_position_embeddings",
        positions_end=True,
        packing=True,
        tokenizers=("vocab.json and merges.txt (GPTTokenizer): <|endoftext|> begins, ends and pads",),
        config_fixes=("paddlesft.quirks.gpt_ignore_index:ignore_unlabelled",),
        fixes=("paddlesft.quirks.gpt_pipeline_table:leave_mask_as_it_is",),
        hf_layout="paddlesft.models.hf_layouts.gpt:LAYOUT",
        num_kv_heads_key=None,
        status="tested",
    ),
    Family(
        name="opt",
        step="paddlesft.models.steps.learned_positions:OPTStep",
        title="OPT",
        model_types=("opt",),
        causal_lm="OPTForCausalLM",
        config_class="OPTConfig",
        base_prefix="opt",
        tensor_plan="paddlesft.models.tensor_plans:opt",
        lora_target_modules=(
            ".*q_proj.*", ".*k_proj.*", ".*v_proj.*", ".*qkv_proj.*", ".*out_proj.*", ".*linear1.*", ".*linear2.*",
            ".*project_in.*", ".*project_out.*",
        ),
        decoder="paddlesft.models.decoders.opt:OPTDecoder",
        positions="learned; none beyond max_position_embeddings",
        positions_end=True,
        prefix_postprocess="paddlenlp.peft.prefix:mistral_postprocess_past_key_value",
        tie_head="paddlesft.quirks.opt_tied_head:tie_head",
        tokenizers=("GPT-2's vocab.json and merges.txt (GPTTokenizer): puts </s> before a text, which ends one too",),
        fixes=(
            "paddlesft.quirks.opt_recompute:offer_recompute", "paddlesft.quirks.opt_attributes:lack_unknown_attributes",
        ),
        packing=True,
        hf_layout="paddlesft.models.hf_layouts.opt:LAYOUT",
        num_kv_heads_key=None,
        cache_sequence_axis=2,
        status="tested",
    ),
    Family(
        name="qwen",
        step="paddlesft.models.steps.qwen:QWenStep",
        title="Qwen 1",
        model_types=("qwen",),
        causal_lm="QWenForCausalLM",
        config_class="QWenConfig",
        pipe_class="QWenForCausalLMPipe",
        base_prefix="qwen",
        tensor_plan="paddlesft.models.tensor_plans:qwen",
        sequence_parallel=True,
        lora_target_modules=(
            ".*attn.c_attn.*", ".*attn.c_proj.*", ".*mlp.w1.*", ".*mlp.w2.*", ".*mlp.gate_up_fused_proj.*",
            ".*mlp.c_proj.*",
        ),
        prefix_postprocess="paddlenlp.peft.prefix:qwen_postprocess_past_key_value",
        decoder="paddlesft.models.decoders.qwen:QWenDecoder",
        tokenizers=(
            "qwen.tiktoken (ranks): no begin-of-sequence; <|endoftext|> ends a text and pads, <|im_end|> ends a turn; "
            "accents are composed (NFC)",
        ),
        chat_template="qwen",
        packing=True,
        context_key="seq_length",
        fixes=(
            "paddlesft.quirks.qwen_length_scaling:keep_trained_length",
            "paddlesft.quirks.qwen_pipeline_mask:offer_mask",
        ),
        hf_layout="paddlesft.models.hf_layouts.qwen:LAYOUT",
        num_kv_heads_key=None,
        status="tested",
    ),
    Family(
        name="chatglm",
        step="paddlesft.models.steps.chatglm:ChatGLMStep",
        inputs="paddlesft.models.steps.inputs:ChatGLMInputs",
        title="ChatGLM-6B",
        model_types=("chatglm",),
        causal_lm="ChatGLMForCausalLM",
        config_class="ChatGLMConfig",
        base_prefix="chatglm",
        tensor_plan="paddlesft.models.tensor_plans:chatglm",
        lora_target_modules=GLM_LORA_TARGETS,
        prefix_postprocess="paddlenlp.peft.prefix:chatglm_postprocess_past_key_value",
        decoder="paddlesft.models.decoders.chatglm:ChatGLMDecoder",
        positions="rotary, two-dimensional: where the blank is, how far behind it",
        packing=True,
        one_reply_per_row=True,
        tokenizers=(
            "ice_text.model (SentencePiece): puts [gMASK]<sop> behind a prompt; <eop> ends a reply; line breaks, tabs "
            "and runs of spaces are tokens of their own",
        ),
        chat_template="chatglm",
        hf_refusal=PADDLE_MIRRORS,
        num_kv_heads_key=None,
        context_key="max_sequence_length",
        cache_batch_axis=1,
        cache_sequence_axis=0,
        fixes=("paddlesft.quirks.glm_recompute:recompute_in_one_pass",),
        status="tested",
    ),
    Family(
        name="chatglm_v2",
        step="paddlesft.models.steps.chatglm_v2:ChatGLMv2Step",
        title="ChatGLM2-6B, ChatGLM3-6B",
        model_types=("chatglm_v2", "chatglm"),
        config_mark="multi_query_group_num",
        causal_lm="ChatGLMv2ForCausalLM",
        config_class="ChatGLMv2Config",
        pipe_class="ChatGLMv2ForCausalLMPipe",
        base_prefix="chatglm_v2",
        tensor_plan="paddlesft.models.tensor_plans:chatglm_v2",
        sequence_parallel=True,
        lora_target_modules=(
            ".*query.*", ".*key.*", ".*value.*", ".*dense.*", ".*dense_h_to_4h.*", ".*dense_4h_to_h.*",
        ),
        prefix_postprocess="paddlenlp.peft.prefix:chatglm_postprocess_past_key_value",
        decoder="paddlesft.models.decoders.chatglm_v2:ChatGLMv2Decoder",
        positions="rotary, on half of each head; none beyond max_sequence_length",
        positions_end=True,
        packing=True,
        tokenizers=("tokenizer.model (SentencePiece): puts [gMASK]sop before a text; </s> ends a reply",),
        chat_template="chatglm2",
        hf_layout="paddlesft.models.hf_layouts.chatglm_v2:LAYOUT",
        num_kv_heads_key="multi_query_group_num",
        context_key="max_sequence_length",
        cache_batch_axis=1,
        cache_sequence_axis=0,
        fixes=("paddlesft.quirks.glm_recompute:recompute_in_one_pass",),
        status="tested",
    ),
    Family(
        name="glm",
        step="paddlesft.models.steps.glm:GLMStep",
        inputs="paddlesft.models.steps.inputs:GLMInputs",
        title="GLM-large, GLM-10B",
        model_types=("glm",),
        causal_lm="GLMForConditionalGeneration",
        config_class="GLMConfig",
        base_prefix="glm",
        tensor_plan="paddlesft.models.tensor_plans:glm",
        lora_target_modules=GLM_LORA_TARGETS,
        decoder="paddlesft.models.decoders.glm:GLMDecoder",
        positions="learned, two-dimensional: where the blank is, how far behind it",
        positions_end=True,
        prefix_postprocess="paddlenlp.peft.prefix:mistral_postprocess_past_key_value",
        packing=True,
        one_reply_per_row=True,
        tokenizers=(
            "GPT-2's vocab.json and merges.txt with added_tokens.json (glm-2b, glm-10b)",
            "cog-pretrain.model (SentencePiece; glm-large-chinese, glm-10b-chinese)",
            "each puts [CLS] before and <|endoftext|> behind a text; <|endofpiece|> ends a reply",
        ),
        chat_template="glm",
        needs_template=True,
        token_ids=(
            ("sop_token_id", "<|startofpiece|>"), ("eop_token_id", "<|endofpiece|>"), ("gmask_token_id", "[gMASK]"),
            ("smask_token_id", "[sMASK]"), ("mask_token_id", "[MASK]"),
        ),
        num_layers_key="num_layers",
        num_kv_heads_key=None,
        context_key="max_sequence_length",
        cache_sequence_axis=2,
        fixes=("paddlesft.quirks.glm_recompute:recompute_in_one_pass",),
        hf_refusal=PADDLE_MIRRORS,
        status="tested",
    ),
)  # fmt: skip


def known_model_types() -> list[str]:
    """Return every ``model_type`` of the table, sorted."""
    return sorted({kind for family in FAMILIES for kind in family.model_types})


def family_named(name: str) -> Family:
    """Return the row of this name.

    Raises:
        KeyError: there is none.
    """
    return {family.name: family for family in FAMILIES}[name]


def family_of(config: Any, where: str = "config.json") -> Family:
    """Return the row of a model.

    Args:
        config: a PaddleNLP config, a model that has one, or the content of config.json.
        where: named in the error.

    Raises:
        ModelDirectoryError: the model's type is in no row.
    """
    config = getattr(config, "config", config)
    entries = config if isinstance(config, dict) else vars(config) | {"model_type": getattr(config, "model_type", None)}
    kind = entries.get("model_type")
    rows = [family for family in FAMILIES if kind in family.model_types]
    for family in sorted(rows, key=lambda family: family.config_mark is None):  # those with a mark first
        if family.config_mark is None or family.config_mark in entries or family.name == kind:
            return family
    found = f"model_type {kind!r}" if kind else "no model_type"
    raise ModelDirectoryError(
        f"{where} names {found}, which no family of this version covers. Known: {', '.join(known_model_types())}."
    )
