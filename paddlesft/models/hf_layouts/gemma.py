"""Hugging Face directories of Gemma (first generation) models."""

from __future__ import annotations

from paddlesft.models.hf_layouts.config_entries import Entry, paddle_only, same, token_id
from paddlesft.models.hf_layouts.layout import Layout
from paddlesft.models.hf_layouts.llama_entries import NO_BIAS, decoder_sizes

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "gelu_new": "gelu_pytorch_tanh"}
WHY = "PaddleNLP's Gemma computes a gelu, exactly or by tanh."

LAYOUT = Layout(
    family="gemma",
    architecture="GemmaForCausalLM",
    model_type="gemma",
    causal_lm="GemmaForCausalLM",
    paddle_model_type="gemma",
    entries=(
        *decoder_sizes(max_positions=8192, kv_heads=16),
        same("head_dim", 256),
        # Early configs say "gelu" in hidden_act and mean the tanh form, which hidden_activation then corrects: the
        # later of the two entries wins. PaddleNLP's model follows it by paddlesft/quirks/gemma_activation.py.
        Entry("hidden_act", "hidden_activation", "gelu_pytorch_tanh", values=ACTIVATIONS, why=WHY),
        Entry(
            "hidden_activation", "hidden_activation", lambda out: out["hidden_activation"], values=ACTIVATIONS, why=WHY
        ),
        NO_BIAS,
        same("attention_dropout", 0.0),
        same("tie_word_embeddings", True),
        token_id("bos_token_id", 2),
        token_id("eos_token_id", 1),
        token_id("pad_token_id", 0),
        paddle_only("alibi", False, why="transformers' Gemma has no ALiBi positions."),
    ),
    rope_kinds=("default",),
)  # fmt: skip
