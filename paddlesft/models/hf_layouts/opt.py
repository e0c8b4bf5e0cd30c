"""Hugging Face directories of OPT models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddlesft.models.hf_layouts.config_entries import Entry, only, same, token_id
from paddlesft.models.hf_layouts.layout import Layout
from paddlesft.models.hf_layouts.tensor_pairs import TensorPair

ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}


def projects(config: Mapping[str, Any]) -> bool:
    """Whether embeddings have another width than the layers (OPT-350M)."""
    return config["word_embed_proj_dim"] != config["hidden_size"]


def projections(config: Mapping[str, Any]) -> list[TensorPair]:
    """Return the tensors between embeddings and layers, which paddlenlp's mapping forgets."""
    if not projects(config):
        return []
    return [
        TensorPair("model.decoder.project_in.weight", "opt.embeddings.project_in.weight", True),
        TensorPair("model.decoder.project_out.weight", "opt.decoder.project_out.weight", True),
    ]


def no_final_norm(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the final norm where the layers normalise after themselves, which then is not there."""
    if config["normalize_before"]:
        return ()
    return ("opt.decoder.final_layer_norm.weight", "opt.decoder.final_layer_norm.bias")


LAYOUT = Layout(
    family="opt",
    architecture="OPTForCausalLM",
    model_type="opt",
    causal_lm="OPTForCausalLM",
    paddle_model_type="opt",
    entries=(
        same("vocab_size"),
        same("hidden_size"),
        same("num_hidden_layers"),
        same("num_attention_heads"),
        Entry("ffn_dim", "intermediate_size", aliases=("intermediate_size",)),
        same("max_position_embeddings", 2048),
        Entry("do_layer_norm_before", "normalize_before", True),
        only(
            "_remove_final_layer_norm", False,
            why="PaddleNLP's OPT has the final norm; the model was saved by an old transformers.",
        ),
        same("word_embed_proj_dim", lambda out: out["hidden_size"]),
        Entry(
            "activation_function", "hidden_act", "relu", values=ACTIVATIONS,
            why="PaddleNLP's OPT knows relu and the tanh form of gelu.",
        ),
        Entry("dropout", "hidden_dropout_prob", 0.1),
        Entry("attention_dropout", "attention_probs_dropout_prob", 0.0),
        only("layerdrop", 0.0, why="PaddleNLP's OPT never drops a layer."),
        Entry("init_std", "initializer_range", 0.02),
        only("enable_bias", True, why="PaddleNLP's OPT always has biases."),
        only("layer_norm_elementwise_affine", True, why="PaddleNLP's norms always have weights."),
        same("tie_word_embeddings", True),
        token_id("bos_token_id", 2),
        token_id("eos_token_id", 2),
        token_id("pad_token_id", 1),
    ),
    embedding="model.decoder.embed_tokens.weight",
    head="lm_head.decoder_weight",
    head_transposed=False,
    # PaddleNLP would compute with random numbers without this copy. With projections it wants a head of the layers'
    # width, where no copy fits; paddlesft/quirks/opt_tied_head.py ties both kinds after loading.
    tied_head=lambda config: None if projects(config) else "lm_head.decoder_weight",
    optional_prefix="model.",
    more_pairs=projections,
    left_out=no_final_norm,
)  # fmt: skip
