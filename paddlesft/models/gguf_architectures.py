"""The architectures that GGUF files are imported from: everything that differs between them is a row here.

Names on the left are those of the ``gguf`` package (``gguf.TENSOR_NAMES``), without ``.weight`` and ``.bias``; names on
the right those of PaddleNLP, below the model's base prefix. llama.cpp's converter reorders the rows of some matrices;
a row's ``undo`` brings them back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.families import family_named
from paddlesft.models.family import Family
from paddlesft.models.gguf_file import AGAIN, INSTEAD, GGUFFile
from paddlesft.models.gguf_rope import rope_scaling

HEAD = "output"
EMBEDDINGS = ("token_embd", "position_embd")  # looked up by row, so never transposed
LLAMA_TENSORS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "blk.{bid}.attn_norm": "layers.{bid}.input_layernorm",
    "blk.{bid}.attn_q": "layers.{bid}.self_attn.q_proj",
    "blk.{bid}.attn_k": "layers.{bid}.self_attn.k_proj",
    "blk.{bid}.attn_v": "layers.{bid}.self_attn.v_proj",
    "blk.{bid}.attn_output": "layers.{bid}.self_attn.o_proj",
    "blk.{bid}.ffn_norm": "layers.{bid}.post_attention_layernorm",
    "blk.{bid}.ffn_gate": "layers.{bid}.mlp.gate_proj",
    "blk.{bid}.ffn_up": "layers.{bid}.mlp.up_proj",
    "blk.{bid}.ffn_down": "layers.{bid}.mlp.down_proj",
}
GPT2_TENSORS = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "output_norm": "decoder.norm",
    "blk.{bid}.attn_norm": "decoder.layers.{bid}.norm1",
    "blk.{bid}.attn_qkv": (
        "decoder.layers.{bid}.self_attn.q_proj",
        "decoder.layers.{bid}.self_attn.k_proj",
        "decoder.layers.{bid}.self_attn.v_proj",
    ),
    "blk.{bid}.attn_output": "decoder.layers.{bid}.self_attn.out_proj",
    "blk.{bid}.ffn_norm": "decoder.layers.{bid}.norm2",
    "blk.{bid}.ffn_up": "decoder.layers.{bid}.linear1",
    "blk.{bid}.ffn_down": "decoder.layers.{bid}.linear2",
}
BLOOM_TENSORS = {
    "token_embd": "word_embeddings",
    "token_embd_norm": "word_embeddings_layernorm",
    "output_norm": "ln_f",
    "blk.{bid}.attn_norm": "h.{bid}.input_layernorm",
    "blk.{bid}.attn_qkv": "h.{bid}.self_attention.query_key_value",
    "blk.{bid}.attn_output": "h.{bid}.self_attention.dense",
    "blk.{bid}.ffn_norm": "h.{bid}.post_attention_layernorm",
    "blk.{bid}.ffn_up": "h.{bid}.mlp.dense_h_to_4h",
    "blk.{bid}.ffn_down": "h.{bid}.mlp.dense_4h_to_h",
}

Undo = Callable[[np.ndarray, GGUFFile], np.ndarray]


@dataclass(frozen=True)
class Architecture:
    """What one value of ``general.architecture`` means.

    Attributes:
        name: the value.
        family_name: the row of ``families.py`` that such a file becomes.
        tensors: GGUF name -> PaddleNLP name; several names where PaddleNLP keeps the rows in matrices of their own.
        config: gives the entries of config.json that say the model's sizes; raises for what the model cannot compute.
        biased: the GGUF names that have a bias beside the weight.
        tied: the output matrix is always the embedding.
        ignored: tensors that are no weights (they became config entries).
        undo: GGUF name -> function that brings the rows back into the order of the published model.
    """

    name: str
    family_name: str
    tensors: dict[str, str | tuple[str, ...]]
    config: Callable[[GGUFFile], dict[str, Any]]
    biased: frozenset[str] = frozenset()
    tied: bool = False
    ignored: tuple[str, ...] = ()
    undo: dict[str, Undo] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """The row of the family table."""
        return family_named(self.family_name)

    def places(self, layers: int) -> dict[str, Place]:
        """List every tensor of a file with this many layers, the output matrix included.

        Returns:
            full GGUF name -> where it goes.
        """
        places = {}
        for stem, targets in {**self.tensors, HEAD: "lm_head"}.items():
            prefix = "" if stem == HEAD else f"{self.family.base_prefix}."
            for suffix in (".weight", ".bias") if stem in self.biased else (".weight",):
                for bid in range(layers) if "{bid}" in stem else (0,):
                    names = (targets,) if isinstance(targets, str) else targets
                    places[stem.format(bid=bid) + suffix] = Place(
                        tuple(prefix + name.format(bid=bid) + suffix for name in names),
                        transposed=stem not in EMBEDDINGS,
                        undo=self.undo.get(stem),
                    )
        return places


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file goes: the PaddleNLP names its rows are shared out to, and what is done before."""

    targets: tuple[str, ...]
    transposed: bool
    undo: Undo | None


def half_split_query(rows: np.ndarray, gguf: GGUFFile) -> np.ndarray:
    """Undo llama.cpp's order of Q."""
    return half_split(rows, gguf.require("attention.head_count"))


def half_split_key(rows: np.ndarray, gguf: GGUFFile) -> np.ndarray:
    """Undo llama.cpp's order of K."""
    return half_split(rows, gguf.get("attention.head_count_kv", gguf.require("attention.head_count")))


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Bring Q or K from llama.cpp's order (rotated pairs side by side) to that of a half-split rotary embedding.

    Args:
        rows: [heads * head_dim, hidden].
        heads: number of heads in ``rows``.

    Returns:
        The same rows in the order of Hugging Face and Paddle.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def head_by_head(rows: np.ndarray, gguf: GGUFFile) -> np.ndarray:
    """Bring a fused QKV from llama.cpp's order (all Q, all K, all V) to BLOOM's (Q, K and V of each head together).

    Args:
        rows: the weight [3 * heads * head_dim, hidden] or the bias [3 * heads * head_dim].
        gguf: says how many heads there are.
    """
    heads = gguf.require("attention.head_count")
    return rows.reshape(3, heads, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def minus_one(weight: np.ndarray, gguf: GGUFFile) -> np.ndarray:
    """Undo what the converter adds to Gemma's norms, whose weights are kept as distances from 1."""
    return weight - 1


def decimal(stored: float) -> float:
    """Return the decimal that a stored float32 was meant to be (0.00001 for 9.99999974e-06)."""
    return float(str(np.float32(stored)))


def allow(gguf: GGUFFile, **allowed: tuple[Any, ...]) -> None:
    """Refuse a file whose keys ask for what the model here does not compute.

    Args:
        gguf: the file.
        allowed: key with ``__`` for the dot -> its allowed values; None stands for an absent key.
    """
    for name, values in allowed.items():
        key = name.replace("__", ".")
        if gguf.get(key) not in values:
            raise ModelDirectoryError(
                f"{gguf.path}: {gguf.architecture}.{key} is {gguf.get(key)}; "
                f"the {gguf.architecture} model here allows only {values[-1]}. {INSTEAD}"
            )


def head_count(gguf: GGUFFile) -> int:
    """Return the number of query heads; heads, key/value heads and hidden size have to fit together."""
    hidden, heads = gguf.require("embedding_length"), gguf.require("attention.head_count")
    shared = gguf.get("attention.head_count_kv", heads)
    if min(hidden, heads, shared) < 1:
        raise ModelDirectoryError(
            f"{gguf.path}: a hidden size of {hidden}, {heads} heads and {shared} key/value heads make no model; each "
            f"has to be 1 or more. {AGAIN}"
        )
    if hidden % heads:
        raise ModelDirectoryError(
            f"{gguf.path}: the hidden size {hidden} cannot be shared out to {heads} heads. {AGAIN}"
        )
    if heads % shared:
        raise ModelDirectoryError(
            f"{gguf.path}: {heads} heads cannot be shared out to {shared} key/value heads. {AGAIN}"
        )
    return heads


def rotary_config(gguf: GGUFFile, scalings: tuple[str, ...], head_dim: int | None = None) -> dict[str, Any]:
    """Return the sizes of a model with rotary positions and RMSNorm.

    Args:
        gguf: the file.
        scalings: the position scalings that the model can compute.
        head_dim: size of a head; None where it follows from the hidden size.
    """
    heads, hidden = head_count(gguf), gguf.require("embedding_length")
    head_dim = head_dim or hidden // heads
    allow(
        gguf,
        expert_count=(None, 0),
        attention__key_length=(None, head_dim),
        attention__value_length=(None, head_dim),
        rope__dimension_count=(None, head_dim),
    )
    context = gguf.require("context_length")
    return {
        "hidden_size": hidden,
        "intermediate_size": gguf.require("feed_forward_length"),
        "num_hidden_layers": gguf.require("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.get("attention.head_count_kv", heads),
        "max_position_embeddings": context,
        "seq_length": context,
        "rms_norm_eps": decimal(gguf.require("attention.layer_norm_rms_epsilon")),
        "rope_theta": decimal(gguf.get("rope.freq_base", 10000.0)),
        **rope_scaling(gguf, head_dim, scalings),
        "hidden_act": "silu",
    }


def llama_config(gguf: GGUFFile) -> dict[str, Any]:
    """Return the sizes of a llama model."""
    return rotary_config(gguf, scalings=("none", "linear", "llama3"))


def qwen2_config(gguf: GGUFFile) -> dict[str, Any]:
    """Return the sizes of a qwen2 model; PaddleNLP's has no position scaling."""
    return rotary_config(gguf, scalings=("none",))


def gemma_config(gguf: GGUFFile) -> dict[str, Any]:
    """Return the sizes of a gemma model, whose heads have a size of their own."""
    head_dim = gguf.require("attention.key_length")
    sizes = rotary_config(gguf, scalings=("none",), head_dim=head_dim)
    return sizes | {"head_dim": head_dim, "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}


def gpt2_config(gguf: GGUFFile) -> dict[str, Any]:
    """Return the sizes of a gpt2 model; PaddleNLP's has the epsilon of its norms built in."""
    epsilon = decimal(gguf.require("attention.layer_norm_epsilon"))
    if epsilon != 1e-5:
        raise ModelDirectoryError(
            f"{gguf.path}: gpt2.attention.layer_norm_epsilon is {epsilon}; the gpt2 model here allows only 1e-05. "
            f"{INSTEAD}"
        )
    context = gguf.require("context_length")
    return {
        "hidden_size": gguf.require("embedding_length"),
        "intermediate_size": gguf.require("feed_forward_length"),
        "num_hidden_layers": gguf.require("block_count"),
        "num_attention_heads": head_count(gguf),
        "max_position_embeddings": context,
        "seq_length": context,
        "layer_norm_eps": epsilon,
        "hidden_activation": "gelu",
    }


def bloom_config(gguf: GGUFFile) -> dict[str, Any]:
    """Return the sizes of a bloom model; its file's context_length may be a stand-in and ALiBi has no limit."""
    hidden = gguf.require("embedding_length")
    allow(gguf, feed_forward_length=(None, 4 * hidden))
    return {
        "hidden_size": hidden,
        "n_layer": gguf.require("block_count"),
        "n_head": head_count(gguf),
        "layer_norm_epsilon": decimal(gguf.require("attention.layer_norm_epsilon")),
    }


ARCHITECTURES = (
    Architecture(
        name="llama",  # Mistral 7B's files say llama, too
        family_name="llama",
        tensors=LLAMA_TENSORS,
        config=llama_config,
        ignored=("rope_freqs.weight",),
        undo={"blk.{bid}.attn_q": half_split_query, "blk.{bid}.attn_k": half_split_key},
    ),
    Architecture(
        name="qwen2",
        family_name="qwen2",
        tensors=LLAMA_TENSORS,
        config=qwen2_config,
        biased=frozenset({"blk.{bid}.attn_q", "blk.{bid}.attn_k", "blk.{bid}.attn_v"}),
    ),
    Architecture(
        name="gemma",
        family_name="gemma",
        tensors=LLAMA_TENSORS,
        config=gemma_config,
        tied=True,
        undo={"blk.{bid}.attn_norm": minus_one, "blk.{bid}.ffn_norm": minus_one, "output_norm": minus_one},
    ),
    Architecture(
        name="gpt2",
        family_name="gpt",
        tensors=GPT2_TENSORS,
        config=gpt2_config,
        biased=frozenset(GPT2_TENSORS) - set(EMBEDDINGS),
        tied=True,
    ),
    Architecture(
        name="bloom",
        family_name="bloom",
        tensors=BLOOM_TENSORS,
        config=bloom_config,
        biased=frozenset(BLOOM_TENSORS) - set(EMBEDDINGS),
        tied=True,
        undo={"blk.{bid}.attn_qkv": head_by_head},
    ),
)


def architecture_of(gguf: GGUFFile) -> Architecture:
    """Return the row of a file.

    Raises:
        ModelDirectoryError: there is none for its architecture.
    """
    rows = {row.name: row for row in ARCHITECTURES}
    if gguf.architecture not in rows:
        raise ModelDirectoryError(
            f"{gguf.path} has the architecture {gguf.architecture!r}. Import covers: {', '.join(rows)}. "
            "Other models: use their Hugging Face directory or hub name."
        )
    return rows[gguf.architecture]
