"""Hugging Face directories of LLaMA models."""

from paddlesft.models.hf_layouts.config_entries import only, paddle_only, same, token_id
from paddlesft.models.hf_layouts.layout import Layout
from paddlesft.models.hf_layouts.llama_entries import NO_BIAS, check_head_size, decoder_sizes

LAYOUT = Layout(
    family="llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    causal_lm="LlamaForCausalLM",
    paddle_model_type="llama",
    entries=(
        *decoder_sizes(max_positions=2048),
        only("hidden_act", "silu", "swish", why="PaddleNLP's LLaMA always computes silu."),
        NO_BIAS,
        only("mlp_bias", False, why="PaddleNLP's LLaMA has no biases there."),
        same("tie_word_embeddings", False),
        token_id("bos_token_id", 1),
        token_id("eos_token_id", 2),
        token_id("pad_token_id", None),
        paddle_only("alibi", False, why="transformers' LLaMA has no ALiBi positions."),
    ),
    rope_kinds=("default", "linear", "dynamic", "llama3"),
    check=check_head_size,
)
