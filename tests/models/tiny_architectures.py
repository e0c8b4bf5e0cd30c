"""Tiny random models by their Hugging Face names, and what llama.cpp's converter makes of them for a GGUF file.

The converter's steps are written here from what it does with a Hugging Face model, with the ``gguf`` package's own
table of names; nothing is taken from the importer, which goes the other way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.tiny_gguf import MERGES, TOKENS, TYPES, interleave, write_gguf

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, CONTEXT = 32, 128, 4, 2, 2, 1024
VOCABULARY = {
    "model": "gpt2", "pre": "gpt-2", "tokens": TOKENS, "token_type": TYPES, "merges": MERGES, "bos_token_id": 1,
    "eos_token_id": 2, "padding_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class TinyArchitecture:
    """A tiny model of one architecture.

    Attributes:
        hf_config: config.json of its Hugging Face directory.
        keys: the GGUF keys that the converter writes for it.
        outer: Hugging Face name -> shape, of the tensors outside the layers.
        layer: the same for one layer, "{i}" being its number.
        convert: what the converter does to a tensor of this name before storing it.
        transformers_imports: transformers reads GGUF files of it, too.
    """

    hf_config: dict[str, Any]
    keys: dict[str, Any]
    outer: dict[str, tuple[int, ...]]
    layer: dict[str, tuple[int, ...]]
    convert: Callable[[str, np.ndarray], np.ndarray]
    transformers_imports: bool = True

    def weights(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Make random weights by their Hugging Face names, in Hugging Face's orientation."""
        random = np.random.default_rng(seed)
        shapes = dict(self.outer)
        for i in range(LAYERS):
            shapes |= {name.format(i=i): shape for name, shape in self.layer.items()}
        return {name: (random.normal(size=shape) * 0.6).astype(np.float32) for name, shape in shapes.items()}


def write_converted(
    path: Path, name: str, weights: dict[str, np.ndarray], stored: str | dict[str, str] = "F32", **changes: Any
) -> Path:
    """Write the GGUF file of a tiny architecture's weights.

    Args:
        path: the file to write.
        name: of the architecture.
        weights: by Hugging Face names.
        stored: as for ``write_gguf``.
        changes: keys to set (``__`` for the dot); None leaves the key out.
    """
    tiny = ARCHITECTURES[name]
    keys = tiny.keys | {key.replace("__", "."): value for key, value in changes.items()}
    keys = {key: value for key, value in keys.items() if value is not None}
    return write_gguf(path, name, keys, converted(name, weights), VOCABULARY, stored)


def converted(name: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of a GGUF file: the gguf package's names, the converter's order of rows."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    code = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == name)
    names = get_tensor_name_map(code, LAYERS)
    tensors = {}
    for hf_name, array in weights.items():
        short = hf_name.removeprefix("transformer.")  # as bloom's table has them
        target = next(filter(None, (names.get_name(n, try_suffixes=(".weight", ".bias")) for n in (hf_name, short))))
        tensors[target] = ARCHITECTURES[name].convert(hf_name, array)
    return tensors


def rotated_pairs(name: str, array: np.ndarray) -> np.ndarray:
    """llama: the two halves of each head of Q and K are put side by side."""
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    return interleave(array, heads) if heads else array


def unchanged(name: str, array: np.ndarray) -> np.ndarray:
    """qwen2: nothing is done."""
    return array


def conv1d_transposed(name: str, array: np.ndarray) -> np.ndarray:
    """gpt2: Conv1D keeps [in, out]; the file has [out, in] like every Linear."""
    return array.T if array.ndim == 2 and name.split(".")[-2].startswith("c_") else array


def query_key_value_apart(name: str, array: np.ndarray) -> np.ndarray:
    """bloom: rows of Q, K and V alternate by head; the file has all of Q, then all of K, then all of V."""
    if ".query_key_value." not in name:
        return array
    pieces = np.split(array, 3 * HEADS)
    return np.concatenate([pieces[3 * head + part] for part in range(3) for head in range(HEADS)])


def norms_plus_one(name: str, array: np.ndarray) -> np.ndarray:
    """gemma: norms are kept as distances from 1; the file has their sum with 1."""
    return array + 1 if name.endswith("norm.weight") else array


def with_bias(stem: str, shape: tuple[int, ...], bias: int) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.weight": shape, f"{stem}.bias": (bias,)}


ROTARY_CONFIG = {
    "vocab_size": len(TOKENS), "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-3, "rope_theta": 300.0, "tie_word_embeddings": False,
}  # fmt: skip
ROTARY_KEYS = {
    "context_length": CONTEXT, "embedding_length": HIDDEN, "block_count": LAYERS, "feed_forward_length": INNER,
    "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.freq_base": 300.0,
    "attention.layer_norm_rms_epsilon": 1e-3,
}  # fmt: skip
ROTARY_OUTER = {
    "model.embed_tokens.weight": (len(TOKENS), HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (len(TOKENS), HIDDEN),
}
SHARED = HIDDEN // HEADS * KV_HEADS
ROTARY_LAYER = {
    f"model.layers.{{i}}.{name}.weight": shape
    for name, shape in {
        "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (SHARED, HIDDEN), "self_attn.v_proj": (SHARED, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
    }.items()
}  # fmt: skip
FUSED_KEYS = {
    "context_length": CONTEXT, "embedding_length": HIDDEN, "block_count": LAYERS, "feed_forward_length": INNER,
    "attention.head_count": HEADS, "attention.layer_norm_epsilon": 1e-5,
}  # fmt: skip
GEMMA_HEAD = 12  # not HIDDEN / HEADS: Gemma's heads have a size of their own
GPT2, BLOOM = "transformer.h.{i}.", "transformer.h.{i}."

ARCHITECTURES = {
    "llama": TinyArchitecture(
        hf_config={"architectures": ["LlamaForCausalLM"], "model_type": "llama", **ROTARY_CONFIG},
        keys={**ROTARY_KEYS, "rope.dimension_count": HIDDEN // HEADS},
        outer=ROTARY_OUTER,
        layer=ROTARY_LAYER,
        convert=rotated_pairs,
    ),
    "qwen2": TinyArchitecture(
        hf_config={"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **ROTARY_CONFIG},
        keys=ROTARY_KEYS,
        outer=ROTARY_OUTER,
        layer={
            **ROTARY_LAYER,
            "model.layers.{i}.self_attn.q_proj.bias": (HIDDEN,),
            "model.layers.{i}.self_attn.k_proj.bias": (SHARED,),
            "model.layers.{i}.self_attn.v_proj.bias": (SHARED,),
        },
        convert=unchanged,
    ),
    "gemma": TinyArchitecture(
        hf_config={
            "architectures": ["GemmaForCausalLM"], "model_type": "gemma", **ROTARY_CONFIG, "head_dim": GEMMA_HEAD,
            "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
        },
        keys={
            **ROTARY_KEYS, "rope.freq_base": 10000.0, "attention.key_length": GEMMA_HEAD,
            "attention.value_length": GEMMA_HEAD,
        },
        outer={name: shape for name, shape in ROTARY_OUTER.items() if name != "lm_head.weight"},
        layer={
            **ROTARY_LAYER,
            "model.layers.{i}.self_attn.q_proj.weight": (HEADS * GEMMA_HEAD, HIDDEN),
            "model.layers.{i}.self_attn.k_proj.weight": (KV_HEADS * GEMMA_HEAD, HIDDEN),
            "model.layers.{i}.self_attn.v_proj.weight": (KV_HEADS * GEMMA_HEAD, HIDDEN),
            "model.layers.{i}.self_attn.o_proj.weight": (HIDDEN, HEADS * GEMMA_HEAD),
        },
        convert=norms_plus_one,
        transformers_imports=False,
    ),
    "gpt2": TinyArchitecture(
        hf_config={
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": len(TOKENS), "n_embd": HIDDEN,
            "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "n_ctx": CONTEXT, "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
        },
        keys=FUSED_KEYS,
        outer={
            "transformer.wte.weight": (len(TOKENS), HIDDEN),
            "transformer.wpe.weight": (CONTEXT, HIDDEN),
            **with_bias("transformer.ln_f", (HIDDEN,), HIDDEN),
        },
        layer={
            **with_bias(f"{GPT2}ln_1", (HIDDEN,), HIDDEN),
            **with_bias(f"{GPT2}attn.c_attn", (HIDDEN, 3 * HIDDEN), 3 * HIDDEN),
            **with_bias(f"{GPT2}attn.c_proj", (HIDDEN, HIDDEN), HIDDEN),
            **with_bias(f"{GPT2}ln_2", (HIDDEN,), HIDDEN),
            **with_bias(f"{GPT2}mlp.c_fc", (HIDDEN, INNER), INNER),
            **with_bias(f"{GPT2}mlp.c_proj", (INNER, HIDDEN), HIDDEN),
        },
        convert=conv1d_transposed,
    ),
    "bloom": TinyArchitecture(
        hf_config={
            "architectures": ["BloomForCausalLM"], "model_type": "bloom", "vocab_size": len(TOKENS),
            "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "layer_norm_epsilon": 1e-3,
        },
        keys={**FUSED_KEYS, "attention.head_count_kv": HEADS, "attention.layer_norm_epsilon": 1e-3},
        outer={
            "transformer.word_embeddings.weight": (len(TOKENS), HIDDEN),
            **with_bias("transformer.word_embeddings_layernorm", (HIDDEN,), HIDDEN),
            **with_bias("transformer.ln_f", (HIDDEN,), HIDDEN),
        },
        layer={
            **with_bias(f"{BLOOM}input_layernorm", (HIDDEN,), HIDDEN),
            **with_bias(f"{BLOOM}self_attention.query_key_value", (3 * HIDDEN, HIDDEN), 3 * HIDDEN),
            **with_bias(f"{BLOOM}self_attention.dense", (HIDDEN, HIDDEN), HIDDEN),
            **with_bias(f"{BLOOM}post_attention_layernorm", (HIDDEN,), HIDDEN),
            **with_bias(f"{BLOOM}mlp.dense_h_to_4h", (INNER, HIDDEN), INNER),
            **with_bias(f"{BLOOM}mlp.dense_4h_to_h", (HIDDEN, INNER), HIDDEN),
        },
        convert=query_key_value_apart,
    ),
}  # fmt: skip
