"""Hugging Face directories of BLOOM models."""

from paddlesft.models.hf_layouts.config_entries import Entry, only, same, token_id
from paddlesft.models.hf_layouts.layout import Layout

LAYOUT = Layout(
    family="bloom",
    architecture="BloomForCausalLM",
    model_type="bloom",
    causal_lm="BloomForCausalLM",
    paddle_model_type="bloom",
    entries=(
        same("vocab_size"),
        same("hidden_size", aliases=("n_embed",)),
        same("n_layer", aliases=("num_hidden_layers",)),
        same("n_head", aliases=("num_attention_heads",)),
        same("layer_norm_epsilon", 1e-5),
        same("initializer_range", 0.02),
        same("apply_residual_connection_post_layernorm", False),
        same("hidden_dropout", 0.0),
        same("attention_dropout", 0.0),
        same("pretraining_tp", 1),
        # The slow path sums slices of the projections as the training cluster did; PaddleNLP's is broken.
        only("slow_but_exact", False, why="PaddleNLP's slow path does not run."),
        Entry(
            "tie_word_embeddings", "tie_word_embeddings", True, values={True: True},
            why="PaddleNLP's BLOOM always shares the embedding with the output head.",
        ),
        token_id("bos_token_id", 1),
        token_id("eos_token_id", 2),
        token_id("pad_token_id", None),
    ),
    embedding="transformer.word_embeddings.weight",
    head=None,
    optional_prefix="transformer.",
)  # fmt: skip
