"""Hugging Face directories of the first Qwen models, whose code is not part of transformers."""

from paddlesft.models.hf_layouts.config_entries import only, same, token_id
from paddlesft.models.hf_layouts.layout import Layout

LAYOUT = Layout(
    family="qwen",
    architecture="QWenLMHeadModel",
    model_type="qwen",
    causal_lm="QWenForCausalLM",
    paddle_model_type="qwen",
    entries=(
        same("vocab_size"),
        same("hidden_size"),
        same("num_hidden_layers"),
        same("num_attention_heads"),
        same("kv_channels"),
        same("intermediate_size"),  # of both halves of the gated layer together
        same("seq_length"),
        same("max_position_embeddings", lambda out: out["seq_length"]),
        same("layer_norm_epsilon", 1e-6),
        same("initializer_range", 0.02),
        same("rotary_pct", 1.0),
        same("rotary_emb_base", 10000),
        same("use_dynamic_ntk", True),
        same("use_logn_attn", True),
        same("emb_dropout_prob", 0.0),
        same("attn_dropout_prob", 0.0),
        only("no_bias", True, why="no published Qwen has biases in its output projections."),
        only("scale_attn_weights", True, why="PaddleNLP's Qwen always scales attention by the head size."),
        only("tie_word_embeddings", False, why="PaddleNLP's Qwen always has an output head of its own."),
        token_id("bos_token_id", None),
        token_id("eos_token_id", None),
        token_id("pad_token_id", None),
    ),
    embedding="transformer.wte.weight",
    export_refusal="transformers has no Qwen 1; the code that would read it comes with the published directories.",
)
