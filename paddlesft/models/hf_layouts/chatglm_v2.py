"""Hugging Face directories of ChatGLM2 and ChatGLM3, whose code is not part of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddlesft.models.hf_layouts.config_entries import Entry, only, same, token_id
from paddlesft.models.hf_layouts.layout import Layout
from paddlesft.models.hf_layouts.tensor_pairs import TensorPair

LINEAR = (
    "self_attention.query_key_value.weight", "self_attention.dense.weight",
    "mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight",
)  # fmt: skip
LINEAR_BIASES = ("self_attention.dense.bias", "mlp.dense_h_to_4h.bias", "mlp.dense_4h_to_h.bias")


def pairs(config: Mapping[str, Any]) -> list[TensorPair]:
    """List the tensors; paddlenlp's own mapping leaves out the parts in front of the names."""
    qkv_bias = config["add_qkv_bias"] or config["add_bias_linear"]
    plain = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    plain += ["self_attention.query_key_value.bias"] if qkv_bias else []
    plain += LINEAR_BIASES if config["add_bias_linear"] else []
    names = [("embedding.word_embeddings.weight", False), ("rotary_pos_emb.inv_freq", False)]
    names += [("encoder.final_layernorm.weight", False)] if config["post_layer_norm"] else []
    names += [("output_layer.weight", True)]
    for i in range(config["num_hidden_layers"]):
        names += [(f"encoder.layers.{i}.{name}", name in LINEAR) for name in (*plain, *LINEAR)]
    return [TensorPair(f"transformer.{name}", f"chatglm_v2.{name}", transposed) for name, transposed in names]


LAYOUT = Layout(
    family="chatglm_v2",
    architecture="ChatGLMModel",
    model_type="chatglm",
    causal_lm="ChatGLMv2ForCausalLM",
    paddle_model_type="chatglm_v2",
    entries=(
        Entry("padded_vocab_size", "vocab_size", aliases=("vocab_size",)),
        same("hidden_size"),
        Entry("num_layers", "num_hidden_layers", aliases=("num_hidden_layers",)),
        same("num_attention_heads"),
        same("ffn_hidden_size"),
        same("kv_channels"),
        same("multi_query_group_num"),
        Entry("seq_length", "max_sequence_length"),
        same("layernorm_epsilon", 1e-5),
        same("add_bias_linear", False),
        same("add_qkv_bias", False),
        same("post_layer_norm", True),
        same("apply_query_key_layer_scaling", True),
        same("apply_residual_connection_post_layernorm", False),
        same("hidden_dropout", 0.0),
        same("attention_dropout", 0.0),
        only("multi_query_attention", True, why="PaddleNLP's ChatGLM2 shares keys and values among heads."),
        only("rmsnorm", True, why="PaddleNLP's ChatGLM2 has no other norm that works."),
        only("original_rope", True, why="PaddleNLP's ChatGLM2 rotates the first half of each head."),
        only("rope_ratio", 1, why="PaddleNLP's ChatGLM2 has its base of positions fixed."),
        only("pre_seq_len", None, 0, why="A prompt encoder (P-Tuning v2) has no place here; take the base model."),
        only("quantization_bit", 0, why="only float weights can be converted; take the original model."),
        only("tie_word_embeddings", False, why="PaddleNLP's ChatGLM2 has an output head of its own."),
        token_id("bos_token_id", 1),
        token_id("eos_token_id", 2),
        token_id("pad_token_id", 0),
    ),
    embedding="transformer.embedding.word_embeddings.weight",
    head=None,  # named like the other tensors, see ``pairs``
    more_pairs=pairs,
    upstream=False,
    export_refusal="transformers has no ChatGLM2; the code that would read it comes with the published directories.",
)
