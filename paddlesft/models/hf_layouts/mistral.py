"""Hugging Face directories of Mistral models."""

from paddlesft.models.hf_layouts.config_entries import Entry, only, same, token_id
from paddlesft.models.hf_layouts.layout import Layout
from paddlesft.models.hf_layouts.llama_entries import check_head_size, decoder_sizes

LAYOUT = Layout(
    family="mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    causal_lm="MistralForCausalLM",
    paddle_model_type="mistral",
    entries=(
        *decoder_sizes(max_positions=32 * 4096, kv_heads=8),
        only("hidden_act", "silu", "swish", why="no published Mistral computes anything else."),
        Entry("sliding_window", "sliding_window", 4096, null=True),  # kept by models/decoders/mistral.py
        same("attention_dropout", 0.0),
        Entry(
            "tie_word_embeddings", "tie_word_embeddings", False, values={False: False},
            why="PaddleNLP's Mistral always has an output head of its own.",
        ),
        token_id("bos_token_id", 1),
        token_id("eos_token_id", 2),
        token_id("pad_token_id", None),
    ),
    rope_kinds=("default",),
    check=check_head_size,
)  # fmt: skip
