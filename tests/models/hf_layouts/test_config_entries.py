"""What a config says is translated or refused by name, in every family and in both directions."""

from __future__ import annotations

import re
from typing import Any

import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.families import FAMILIES, family_named

LLAMA = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4
}  # fmt: skip
QWEN = {**LLAMA, "kv_channels": 16, "seq_length": 64}
SMALLEST: dict[str, dict[str, Any]] = {  # nothing but what a config must say
    "llama": LLAMA, "qwen2": LLAMA, "mistral": LLAMA, "gemma": LLAMA, "qwen": QWEN,
    "bloom": {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "gpt": {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4},
    "opt": {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 112},
    "chatglm_v2": {
        "padded_vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 112,
        "kv_channels": 16, "multi_query_group_num": 2, "seq_length": 64,
    },
}  # fmt: skip


def translated(family: str, **entries: Any) -> dict[str, Any]:
    layout = family_named(family).hugging_face_layout()
    return layout.paddle_config({"model_type": layout.model_type, **SMALLEST[family], **entries}, "config.json")


def paddle_config(family: str, **entries: Any) -> Any:
    import paddlenlp.transformers as zoo

    row = family_named(family)
    config = getattr(zoo, row.config_class)(**{**translated(family), **entries})
    row.fix_config(config)
    return config


def test_every_layout_has_a_smallest_config() -> None:
    assert {family.name for family in FAMILIES if family.hf_layout} == set(SMALLEST)


@pytest.mark.parametrize("family", SMALLEST)
def test_missing_entries_are_named(family: str) -> None:
    for key in SMALLEST[family]:
        with pytest.raises(ModelDirectoryError, match=f"config.json has no {key}, which a model of this kind must say"):
            translated(family, **{key: None})


@pytest.mark.parametrize(
    ("family", "entry", "expected"),
    [
        ("mistral", "rope_theta", 10000.0),  # transformers' defaults, not PaddleNLP's
        ("mistral", "sliding_window", 4096),
        ("mistral", "num_key_value_heads", 8),
        ("llama", "num_key_value_heads", 4),
        ("gemma", "head_dim", 256),
        ("gemma", "tie_word_embeddings", True),
        ("gemma", "hidden_activation", "gelu_pytorch_tanh"),
        ("qwen2", "tie_word_embeddings", False),
        ("opt", "word_embed_proj_dim", 64),
        ("opt", "normalize_before", True),
        ("gpt", "intermediate_size", 256),
        ("gpt", "hidden_activation", "gelu"),
        ("gpt", "max_position_embeddings", 1024),
        ("gpt", "pad_token_id", None),
        ("chatglm_v2", "max_sequence_length", 64),
        ("qwen", "seq_length", 64),
    ],
)
def test_defaults_are_those_of_transformers(family: str, entry: str, expected: Any) -> None:
    assert translated(family)[entry] == expected


@pytest.mark.parametrize(
    ("family", "entries", "expected"),
    [
        ("mistral", {"sliding_window": None}, {"sliding_window": None}),
        ("gpt", {"n_embd": None, "hidden_size": 32}, {"hidden_size": 32}),
        ("gpt", {"n_inner": 80, "n_positions": 96}, {"intermediate_size": 80, "max_position_embeddings": 96}),
        ("bloom", {"hidden_size": None, "n_embed": 32}, {"hidden_size": 32}),
        ("bloom", {"n_head": None, "num_attention_heads": 8}, {"n_head": 8}),
        ("gemma", {"hidden_act": "gelu"}, {"hidden_activation": "gelu"}),
        ("gemma", {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
         {"hidden_activation": "gelu_pytorch_tanh"}),
        ("opt", {"activation_function": "gelu_new"}, {"hidden_act": "gelu"}),
        ("opt", {"dropout": 0.3, "do_layer_norm_before": False},
         {"hidden_dropout_prob": 0.3, "normalize_before": False}),
        ("llama", {"my_own_entry": 5}, {"my_own_entry": 5}),
        ("qwen2", {"layer_types": ["full_attention"] * 2}, {"layer_types": ["full_attention"] * 2}),
    ],
)  # fmt: skip
def test_translated_values(family: str, entries: dict[str, Any], expected: dict[str, Any]) -> None:
    found = translated(family, **entries)
    assert {key: found[key] for key in expected} == expected


YARN = {"rope_type": "yarn", "factor": 4.0}
REFUSED = [
    ("llama", {"hidden_act": "gelu"}, r"hidden_act is 'gelu'; PaddleNLP's LLaMA always computes silu. Works: 'silu'"),
    ("llama", {"attention_bias": True}, r"attention_bias is True; PaddleNLP's model has no biases there"),
    ("llama", {"mlp_bias": True}, r"mlp_bias is True"),
    ("llama", {"head_dim": 32}, r"head_dim is 32; only hidden_size / num_attention_heads = 16 works"),
    ("llama", {"rope_scaling": YARN}, r"scaling 'yarn' is not covered. Known: default, linear, dynamic, llama3"),
    ("llama", {"alibi": True}, r"alibi is True; transformers' LLaMA has no ALiBi positions"),
    ("gemma", {"alibi": True}, r"alibi is True; transformers' Gemma has no ALiBi positions"),
    ("gpt", {"scale_qk_coeff": 2.0}, r"scale_qk_coeff is 2.0"),
    ("qwen2", {"rope_scaling": YARN}, r"position scaling 'yarn' is not covered. Known: default\."),
    ("qwen2", {"rope_scaling": {"type": "linear", "factor": 2}}, r"position scaling 'linear' is not covered"),
    ("qwen2", {"use_sliding_window": True}, r"use_sliding_window is True; .* attends to the whole context"),
    ("qwen2", {"layer_types": ["sliding_attention"]}, r"layer_types has sliding_attention"),
    ("qwen2", {"head_dim": 32}, r"head_dim is 32"),
    ("mistral", {"head_dim": 32}, r"head_dim is 32"),
    ("mistral", {"tie_word_embeddings": True}, r"tie_word_embeddings is True; .* always has an output head of its own"),
    ("mistral", {"rope_parameters": YARN}, r"position scaling 'yarn' is not covered"),
    ("gemma", {"hidden_activation": "relu"}, r"hidden_activation is 'relu'; PaddleNLP's Gemma computes a gelu"),
    ("gemma", {"attention_bias": True}, r"attention_bias is True"),
    ("gemma", {"rope_scaling": {"type": "dynamic", "factor": 2}}, r"position scaling 'dynamic' is not covered"),
    ("bloom", {"tie_word_embeddings": False}, r"tie_word_embeddings is False; .* always shares the embedding"),
    ("bloom", {"slow_but_exact": True}, r"slow_but_exact is True; .*slow path does not run"),
    ("bloom", {"n_embed": 32}, r"hidden_size and n_embed contradict each other: 64, 32"),
    ("gpt", {"activation_function": "relu"}, r"activation_function is 'relu'; .*always computes the tanh form of gelu"),
    ("gpt", {"activation_function": "gelu"}, r"activation_function is 'gelu'"),
    ("gpt", {"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon is 1e-06; PaddleNLP's GPT has it fixed. Works: 1e-05"),
    ("gpt", {"scale_attn_weights": False}, r"scale_attn_weights is False"),
    ("gpt", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx is True"),
    ("gpt", {"add_cross_attention": True}, r"add_cross_attention is True"),
    ("gpt", {"tie_word_embeddings": False}, r"tie_word_embeddings is False"),
    ("opt", {"activation_function": "gelu"}, r"activation_function is 'gelu'; PaddleNLP's OPT knows relu and the tanh"),
    (
        "opt",
        {"_remove_final_layer_norm": True},
        r"_remove_final_layer_norm is True; PaddleNLP's OPT has the final norm",
    ),
    ("opt", {"enable_bias": False}, r"enable_bias is False"),
    ("opt", {"layer_norm_elementwise_affine": False}, r"layer_norm_elementwise_affine is False"),
    ("opt", {"layerdrop": 0.1}, r"layerdrop is 0.1"),
    ("qwen", {"no_bias": False}, r"no_bias is False"),
    ("qwen", {"tie_word_embeddings": True}, r"tie_word_embeddings is True"),
    ("chatglm_v2", {"rope_ratio": 50}, r"rope_ratio is 50; PaddleNLP's ChatGLM2 has its base of positions fixed"),
    ("chatglm_v2", {"multi_query_attention": False}, r"multi_query_attention is False"),
    ("chatglm_v2", {"quantization_bit": 4}, r"quantization_bit is 4; only float weights can be converted"),
    ("chatglm_v2", {"pre_seq_len": 128}, r"pre_seq_len is 128"),
    ("chatglm_v2", {"rmsnorm": False}, r"rmsnorm is False"),
    ("chatglm_v2", {"original_rope": False}, r"original_rope is False"),
]


@pytest.mark.parametrize(("family", "entries", "message"), REFUSED)
def test_refused_values(family: str, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelDirectoryError, match=f"^config.json: .*{message}"):
        translated(family, **entries)


EXPORT_REFUSED = [
    ("llama", {"alibi": True}, r"alibi is True; transformers' LLaMA has no ALiBi"),
    ("llama", {"rope_scaling_type": "ntk"}, r"rope_scaling_type 'ntk' has no .* counterpart here. Known: linear"),
    ("gpt", {"normalize_before": False}, r"normalize_before is False; GPT-2 normalises before attention"),
    ("gpt", {"scale_qk_coeff": 2.0}, r"scale_qk_coeff is 2.0"),
    ("gpt", {"hidden_activation": "relu"}, r"hidden_activation is 'relu'.* Works: 'gelu'"),
    ("opt", {"hidden_act": "silu"}, r"hidden_act is 'silu'.* Works: 'relu', 'gelu'"),
    ("qwen", {}, r"family qwen cannot be written in Hugging Face's layout: transformers has no Qwen 1"),
    ("chatglm_v2", {}, r"family chatglm_v2 cannot be written in Hugging Face's layout: transformers has no ChatGLM2"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "entries", "message"), EXPORT_REFUSED)
def test_refused_exports(family: str, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelDirectoryError, match=message):
        family_named(family).hugging_face_layout().hugging_face_config(paddle_config(family, **entries))


@pytest.mark.parametrize("family", [f.name for f in FAMILIES if not f.hf_layout])
def test_families_without_a_layout_say_what_to_take_instead(family: str) -> None:
    reason = family_named(family).hf_refusal
    assert reason
    with pytest.raises(ModelDirectoryError, match=f"family {family} cannot be converted .*{re.escape(reason)}"):
        family_named(family).hugging_face_layout()


@pytest.mark.parametrize("family", [f for f in SMALLEST if f not in ("qwen", "chatglm_v2")])
def test_what_was_translated_comes_back(family: str) -> None:
    layout = family_named(family).hugging_face_layout()
    back = layout.hugging_face_config(paddle_config(family))
    assert (back["model_type"], back["architectures"]) == (layout.model_type, [layout.architecture])
    assert {key: back[key] for key in SMALLEST[family]} == SMALLEST[family]
    again = layout.paddle_config(back, "config.json")
    assert {key: again[key] for key in translated(family)} == translated(family)


@pytest.mark.parametrize(
    ("entries", "name"),
    [
        ({"model_type": "chatglm"}, "chatglm"),
        ({"model_type": "chatglm", "multi_query_group_num": 2}, "chatglm_v2"),
        ({"model_type": "chatglm_v2"}, "chatglm_v2"),
        ({"model_type": "gpt2"}, "gpt"),
    ],
)
def test_families_of_one_model_type_are_told_apart(entries: dict[str, Any], name: str) -> None:
    from paddlesft.models.families import family_of

    assert family_of(entries).name == name


# As published with gpt2, bloom-560m, opt-350m, Mistral-7B-v0.1, gemma-2b, Qwen2.5-0.5B, chatglm2-6b and Qwen-7B.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt": (
        {"activation_function": "gelu_new", "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1,
         "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768,
         "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_type": "cls_index",
         "task_specific_params": {"text-generation": {"do_sample": True}}, "vocab_size": 50257},
        {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "max_position_embeddings": 1024,
         "eos_token_id": 50256, "pad_token_id": None, "hidden_dropout_prob": 0.1},
    ),
    "bloom": (
        {"apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "attention_softmax_in_fp32": True,
         "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "unk_token_id": 0,
         "hidden_dropout": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True,
         "n_embed": 1024, "n_inner": None, "n_layer": 24, "num_attention_heads": 16, "offset_alibi": 100,
         "pretraining_tp": 1, "skip_bias_add": True, "skip_bias_add_qkv": False, "use_cache": True,
         "vocab_size": 250880},
        {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "pad_token_id": 3, "tie_word_embeddings": True},
    ),
    "opt": (
        {"_remove_final_layer_norm": False, "activation_dropout": 0.0, "activation_function": "relu",
         "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": False, "dropout": 0.1, "eos_token_id": 2,
         "ffn_dim": 4096, "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
         "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 1, "prefix": "</s>",
         "vocab_size": 50272, "word_embed_proj_dim": 512},
        {"intermediate_size": 4096, "normalize_before": False, "word_embed_proj_dim": 512, "hidden_act": "relu"},
    ),
    "mistral": (
        {"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
         "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
         "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
         "sliding_window": 4096, "tie_word_embeddings": False, "use_cache": True, "vocab_size": 32000},
        {"sliding_window": 4096, "max_position_embeddings": 32768, "num_key_value_heads": 8},
    ),
    "gemma": (
        {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "head_dim": 256,
         "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2048, "initializer_range": 0.02,
         "intermediate_size": 16384, "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 18,
         "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": None,
         "rope_theta": 10000.0, "use_cache": True, "vocab_size": 256000},
        {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "tie_word_embeddings": True},
    ),
    "qwen2": (
        {"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
         "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
         "max_window_layers": 21, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
         "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
         "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936},
        {"rope_theta": 1e6, "tie_word_embeddings": True, "use_sliding_window": False, "seq_length": 32768},
    ),
    "chatglm_v2": (
        {"add_bias_linear": False, "add_qkv_bias": True, "apply_query_key_layer_scaling": True,
         "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "attention_softmax_in_fp32": True,
         "bias_dropout_fusion": True, "ffn_hidden_size": 13696, "fp32_residual_connection": False,
         "hidden_dropout": 0.0, "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1e-05,
         "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28,
         "original_rope": True, "padded_vocab_size": 65024, "post_layer_norm": True, "rmsnorm": True,
         "seq_length": 32768, "use_cache": True, "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0},
        {"vocab_size": 65024, "num_hidden_layers": 28, "max_sequence_length": 32768, "multi_query_group_num": 2},
    ),
    "qwen": (
        {"attn_dropout_prob": 0.0, "bf16": False, "emb_dropout_prob": 0.0, "fp16": False, "hidden_size": 4096,
         "intermediate_size": 22016, "initializer_range": 0.02, "kv_channels": 128, "layer_norm_epsilon": 1e-06,
         "max_position_embeddings": 32768, "no_bias": True, "num_attention_heads": 32, "num_hidden_layers": 32,
         "onnx_safe": None, "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": True,
         "seq_length": 8192, "tie_word_embeddings": False, "tokenizer_class": "QWenTokenizer", "use_cache": True,
         "use_dynamic_ntk": True, "use_flash_attn": "auto", "use_logn_attn": True, "vocab_size": 151936},
        {"seq_length": 8192, "max_position_embeddings": 32768, "intermediate_size": 22016},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_configs_are_read(family: str) -> None:
    import paddlenlp.transformers as zoo

    published, expected = PUBLISHED[family]
    row = family_named(family)
    layout = row.hugging_face_layout()
    found = layout.paddle_config({"model_type": layout.model_type, **published}, "config.json")
    config = getattr(zoo, row.config_class).from_dict(found)
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.model_type == layout.paddle_model_type and row.model_types[0] == layout.paddle_model_type
