"""Writes small random GGUF files, as llama.cpp's converter would; of a tiny llama unless something else is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TOKENS = ["<pad>", "<|im_start|>", "<|im_end|>", "a", "b", "c", "d", "Ġ", "ab", "cd", "1", "2"]
TYPES = [3, 3, 3] + [1] * 9
MERGES = ["a b", "c d"]
HEADS, KV_HEADS, HIDDEN, INNER, CONTEXT = 4, 2, 32, 64, 128


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Bring Q or K into llama.cpp's order: the two halves of each head side by side (its converter's permutation)."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def tiny_weights(seed: int = 0, tied: bool = False, layers: int = 2) -> dict[str, np.ndarray]:
    """Make random weights by their Hugging Face names, in torch's orientation."""
    random = np.random.default_rng(seed)
    head = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (len(TOKENS), HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not tied:
        shapes["lm_head.weight"] = (len(TOKENS), HIDDEN)
    for i in range(layers):
        prefix = f"model.layers.{i}."
        shapes |= {f"{prefix}{n}.weight": (HIDDEN,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{prefix}self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qo"}
        shapes |= {f"{prefix}self_attn.{n}_proj.weight": (KV_HEADS * head, HIDDEN) for n in "kv"}
        shapes |= {f"{prefix}mlp.{n}_proj.weight": (INNER, HIDDEN) for n in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (HIDDEN, INNER)}
    return {name: (random.normal(size=shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed or name == "lm_head.weight":
        return fixed.get(name, "output.weight")
    _, _, layer, *rest, _ = name.split(".")
    return f"blk.{layer}.{GGUF_NAMES['.'.join(rest)]}.weight"


def write_tiny_gguf(
    path: Path,
    weights: dict[str, np.ndarray],
    stored: str = "F32",
    architecture: str = "llama",
    skip: tuple[str, ...] = (),
    pre: str = "smollm",
    tokenizer: str = "gpt2",
    extra: dict[str, object] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
    add_bos: bool = False,
) -> Path:
    """Write a GGUF file of a tiny llama.

    Args:
        path: the file to write.
        weights: by Hugging Face names.
        stored: type of the matrices: F32, F16, BF16 or Q8_0.
        architecture: value of general.architecture.
        skip: GGUF tensors or keys that are left out.
        pre: value of tokenizer.ggml.pre.
        tokenizer: value of tokenizer.ggml.model.
        extra: further keys (below the architecture's name) with float, int or str values.
        extra_tensors: further tensors by GGUF name.
        add_bos: value of tokenizer.ggml.add_bos_token.
    """
    keys: dict[str, object] = {
        "context_length": CONTEXT, "embedding_length": HIDDEN, "block_count": 2, "feed_forward_length": INNER,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.freq_base": 50000.0,
        "rope.dimension_count": HIDDEN // HEADS, "attention.layer_norm_rms_epsilon": 1e-6, **(extra or {}),
    }  # fmt: skip
    tensors = {}
    for name, array in weights.items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        tensors[gguf_name(name)] = interleave(array, heads) if heads else array
    vocabulary = {
        "model": tokenizer, "pre": pre, "tokens": TOKENS, "token_type": TYPES, "merges": MERGES, "bos_token_id": 1,
        "eos_token_id": 2, "padding_token_id": 0, "add_bos_token": add_bos,
    }  # fmt: skip
    return write_gguf(
        path,
        architecture,
        {key: value for key, value in keys.items() if key not in skip},
        {name: array for name, array in {**tensors, **(extra_tensors or {})}.items() if name not in skip},
        {key: value for key, value in vocabulary.items() if key not in skip},
        stored,
    )


def write_gguf(
    path: Path,
    architecture: str,
    keys: dict[str, object],
    tensors: dict[str, np.ndarray],
    vocabulary: dict[str, object],
    stored: str | dict[str, str] = "F32",
) -> Path:
    """Write a GGUF file.

    Args:
        path: the file to write.
        architecture: value of general.architecture.
        keys: float, int or str values below the architecture's name.
        tensors: by GGUF name, in torch's orientation.
        vocabulary: values below ``tokenizer.ggml.``.
        stored: type of all matrices, or of each (F32 where not named).
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    named = {f"{architecture}.{key}": value for key, value in keys.items()}
    for key, value in {**named, **{f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}}.items():
        kind = type(value) if not isinstance(value, list) else list
        add = {
            bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
            list: writer.add_array,
        }[kind]  # fmt: skip
        add(key, value)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, array in tensors.items():
        kind = stored if isinstance(stored, str) else stored.get(name, "F32")
        if kind == "F32" or array.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(array))
        else:
            code = GGMLQuantizationType[kind]
            writer.add_tensor(name, quantize(array, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny_hf(
    directory: Path, weights: dict[str, np.ndarray], stored: str = "F32", shards: int = 1, **config: object
) -> Path:
    """Write the same weights as a Hugging Face directory, in one file or in shards with an index."""
    from paddlesft.models.weights import TORCH_LAYOUT, NewTensor, write_weights

    directory.mkdir(parents=True)
    total = sum(array.nbytes for array in weights.values())
    tensors = {name: NewTensor(stored, array.shape, lambda a=array: a) for name, array in weights.items()}
    write_weights(directory, tensors, TORCH_LAYOUT, max_shard_bytes=total if shards == 1 else total // shards)
    content = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(TOKENS), "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6,
        "rope_theta": 50000.0, "tie_word_embeddings": "lm_head.weight" not in weights, "bos_token_id": 1,
        "eos_token_id": [2, 5], "pad_token_id": None, "transformers_version": "4.57.6", **config,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(content))
    return directory
