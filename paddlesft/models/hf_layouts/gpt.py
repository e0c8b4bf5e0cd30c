"""Hugging Face directories of GPT-2 models, which PaddleNLP calls GPT."""

from paddlesft.models.hf_layouts.config_entries import Entry, only, paddle_only, same, token_id
from paddlesft.models.hf_layouts.layout import Layout

PLAIN_ATTENTION = "PaddleNLP's GPT scales attention by the square root of the head size and by nothing else."

LAYOUT = Layout(
    family="gpt",
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    causal_lm="GPTForCausalLM",
    paddle_model_type="gpt",
    entries=(
        same("vocab_size"),
        Entry("n_embd", "hidden_size", aliases=("hidden_size",)),
        Entry("n_layer", "num_hidden_layers", aliases=("num_hidden_layers",)),
        Entry("n_head", "num_attention_heads", aliases=("num_attention_heads",)),
        Entry("n_positions", "max_position_embeddings", 1024, aliases=("max_position_embeddings",)),
        Entry("n_inner", "intermediate_size", lambda out: 4 * out["hidden_size"]),
        Entry(
            "activation_function", "hidden_activation", "gelu_new",
            values={"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"},
            why="PaddleNLP's GPT always computes the tanh form of gelu.",
        ),
        Entry(
            "layer_norm_epsilon", "layer_norm_eps", 1e-5, values={1e-5: 1e-5},
            why="PaddleNLP's GPT has it fixed.",
        ),
        Entry("attn_pdrop", "attention_probs_dropout_prob", 0.1),
        Entry("resid_pdrop", "hidden_dropout_prob", 0.1),
        # PaddleNLP has two rates for three places; the third is kept for the way back.
        same("embd_pdrop", lambda out: out["hidden_dropout_prob"]),
        same("initializer_range", 0.02),
        only("scale_attn_weights", True, why=PLAIN_ATTENTION),
        only("scale_attn_by_inverse_layer_idx", False, why=PLAIN_ATTENTION),
        only("add_cross_attention", False, why="PaddleNLP's GPT is a decoder alone."),
        Entry(
            "tie_word_embeddings", "tie_word_embeddings", True, values={True: True},
            why="PaddleNLP's GPT always shares the embedding with the output head.",
        ),
        token_id("bos_token_id", 50256),
        token_id("eos_token_id", 50256),
        token_id("pad_token_id", None),
        paddle_only("normalize_before", True, why="GPT-2 normalises before attention."),
        paddle_only("scale_qk_coeff", 1.0, why="GPT-2 knows no further scale of the scores."),
    ),
    embedding="transformer.wte.weight",
    head=None,
    optional_prefix="transformer.",
)  # fmt: skip
