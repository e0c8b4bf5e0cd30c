"""A tiny random model of every family, with a real tokenizer of the family's kind: 4 heads, 2 layers, 512 positions.

A family is one entry of ``FAMILY_FIXTURES``: its classes' names, what its config calls these sizes, and what writes its
tokenizer files (``tiny_tokenizers.py``; vocabularies of 500 to 2,200 entries, so that a training step of the model
takes milliseconds).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests import tiny_tokenizers

HIDDEN, LAYERS, HEADS, KV_HEADS, CONTEXT = 64, 2, 4, 2, 512
WEIGHTS_STD = 0.1  # of the random weights: with 0.02, as models begin, no token is ever much likelier than another
SMOLLM2 = "smollm2"  # stands for the embedded model's directory among a tokenizer writer's arguments

SIZES = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
LLAMA = {
    **SIZES, "num_key_value_heads": KV_HEADS, "intermediate_size": 128, "max_position_embeddings": CONTEXT,
    "seq_length": CONTEXT, "tie_word_embeddings": False,
}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class TinyFamily(NamedTuple):
    """How a tiny model of one family is made.

    Attributes:
        model: class of ``paddlenlp.transformers`` that computes logits.
        config: its config class there.
        sizes: values of the config; the vocabulary's size and special ids come from the tokenizer.
        tokenizer: writes tokenizer files into a directory; ``partial`` arguments ``SMOLLM2`` become that directory.
    """

    model: str
    config: str
    sizes: dict[str, Any]
    tokenizer: Callable[..., None]


def chatml(tokenizer_class: str) -> Callable[..., None]:
    """SmolLM2's tokenizer.json under the name that the family's directories give theirs."""
    return partial(tiny_tokenizers.tokenizer_json, smollm2=SMOLLM2, tokenizer_class=tokenizer_class)


FAMILY_FIXTURES: dict[str, TinyFamily] = {
    "llama": TinyFamily("LlamaForCausalLM", "LlamaConfig", LLAMA, tiny_tokenizers.llama),
    "qwen2": TinyFamily("Qwen2ForCausalLM", "Qwen2Config", LLAMA, chatml("Qwen2Tokenizer")),
    "mistral": TinyFamily("MistralForCausalLM", "MistralConfig", LLAMA, tiny_tokenizers.llama),
    "gemma": TinyFamily(
        "GemmaForCausalLM", "GemmaConfig",
        {**LLAMA, "head_dim": 32, "tie_word_embeddings": True}, tiny_tokenizers.gemma,
    ),
    "bloom": TinyFamily(
        "BloomForCausalLM", "BloomConfig",
        {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}, chatml("BloomTokenizerFast"),
    ),
    "gpt": TinyFamily(
        "GPTForCausalLM", "GPTConfig",
        {**SIZES, **NO_DROPOUT, "intermediate_size": 128, "max_position_embeddings": CONTEXT, "seq_length": CONTEXT},
        tiny_tokenizers.gpt2,
    ),
    "opt": TinyFamily(
        "OPTForCausalLM", "OPTConfig",
        {**SIZES, **NO_DROPOUT, "intermediate_size": 128, "max_position_embeddings": CONTEXT,
         "word_embed_proj_dim": HIDDEN},
        tiny_tokenizers.opt,
    ),
    "qwen": TinyFamily(
        "QWenForCausalLM", "QWenConfig",
        {**SIZES, "kv_channels": HIDDEN // HEADS, "intermediate_size": 256, "seq_length": CONTEXT,
         "max_position_embeddings": CONTEXT},
        tiny_tokenizers.qwen,
    ),
    "chatglm": TinyFamily(
        "ChatGLMForCausalLM", "ChatGLMConfig",
        {**SIZES, "inner_hidden_size": 128, "max_sequence_length": CONTEXT}, tiny_tokenizers.chatglm,
    ),
    "chatglm_v2": TinyFamily(
        "ChatGLMv2ForCausalLM", "ChatGLMv2Config",
        {**SIZES, "multi_query_group_num": KV_HEADS, "kv_channels": HIDDEN // HEADS, "ffn_hidden_size": 128,
         "max_sequence_length": CONTEXT, "add_qkv_bias": True},
        tiny_tokenizers.chatglm_v2,
    ),
    "glm": TinyFamily(
        "GLMForConditionalGeneration", "GLMConfig",
        {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_layers": LAYERS, "max_sequence_length": CONTEXT,
         "output_predict": True, "embedding_dropout_prob": 0.0, "attention_dropout_prob": 0.0,
         "output_dropout_prob": 0.0},
        tiny_tokenizers.glm_gpt2,
    ),
}  # fmt: skip

# ids in the config, by the names that tokenizers give them
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")


def write_tiny_family(name: str, path: Path, seed: int = 7, **overrides: object) -> Path:
    """Write a random model of one family as a directory in Paddle's layout.

    Args:
        name: a key of ``FAMILY_FIXTURES``.
        path: the directory to create.
        seed: seed of the random weights.
        overrides: values of the config to change.

    Returns:
        ``path``.
    """
    import paddle
    import paddlenlp.transformers as zoo

    from paddlesft.models import load_tokenizer
    from paddlesft.models.load import quiet_paddlenlp

    family = FAMILY_FIXTURES[name]
    path.mkdir(parents=True)
    write_tokenizer(name, path)
    tokenizer = load_tokenizer(path)
    ids = {key: getattr(tokenizer, key, None) for key in SPECIAL_IDS}
    known = {key: value for key, value in ids.items() if value is not None}
    values = {**family.sizes, "vocab_size": len(tokenizer), **known, "dtype": "float32", **overrides}
    paddle.seed(seed)
    with quiet_paddlenlp():
        model = getattr(zoo, family.model)(getattr(zoo, family.config)(**values))
        redraw_weights(model)
        model.save_pretrained(str(path), safe_serialization=True)
    return path


def write_tokenizer(name: str, path: Path) -> None:
    """Write the tokenizer files of a family's tiny model."""
    write = FAMILY_FIXTURES[name].tokenizer
    if isinstance(write, partial) and write.keywords.get("smollm2") == SMOLLM2:
        from paddlesft.models import resolve_model

        write(path, smollm2=resolve_model("embedded:smollm2"))
    else:
        write(path)


def redraw_weights(model: Any) -> None:
    """Draw every matrix of a model anew; PaddleNLP's Bloom, for one, begins with zeros where a layer has a bias."""
    import paddle

    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.set_value(paddle.normal(0.0, WEIGHTS_STD, parameter.shape).astype(parameter.dtype))
