"""A model of the same kind in small: for runs that are about how a model is divided, not about what it knows.

Kept: the family, query heads for each key/value head, whether a tensor-parallel rank has one key/value head or more,
widths in proportion, tied or not, activation, biases, positions, whether the stages of a pipeline are equal. Dropout is
turned off: no two layouts draw the same masks. Only config.json is needed, neither paddle nor weights.

Which entries of config.json hold a size differs between families; the weights' plan, which reads them, is asked.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.directories import write_json
from paddlesft.errors import ModelDirectoryError
from paddlesft.models.family import Family
from paddlesft.models.tensor_plans import PlannedTensor, TensorPlan
from paddlesft.models.weights import DTYPE, PADDLE_LAYOUT, NewTensor, write_weights

HEAD_DIM, MANY_HEADS = 16, 8  # heads are half as wide where the ratio asks for so many
WIDTH_STEP = 8  # columns of the feed-forward block come in multiples of this for each tensor-parallel rank
FEW_TOKENS = 256
WEIGHTS_STD = 0.1  # larger than models begin with, so that losses tell right gradients from wrong ones
# names that families give an entry, each beside the size of the plan that it decides; the order is that of setting them
ENTRIES = {
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "multi_query_group_num"),
    "hidden": ("hidden_size", "n_embd", "n_embed"),
    "head_dim": ("head_dim", "kv_channels"),
    "ffn": ("intermediate_size", "n_inner", "ffn_hidden_size", "inner_hidden_size", "ffn_dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocab": ("vocab_size", "padded_vocab_size"),
}
OTHER_WIDTHS = ("word_embed_proj_dim",)  # in proportion to the hidden size
DROPOUT = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout_prob", "output_dropout_prob",
    "embedding_dropout_prob", "hidden_dropout", "attention_dropout", "attn_dropout_prob", "emb_dropout_prob",
    "attn_pdrop", "resid_pdrop", "embd_pdrop", "classifier_dropout", "dropout",
)  # fmt: skip
# what does not belong to a random model in float32: marks of its origin, fused matrices, half precision
LEFT_OUT = (
    "transformers_version", "torch_dtype", "architectures", "auto_map", "_name_or_path", "quantization_config",
    "fuse_attention_qkv", "fuse_attention_ffn",
)  # fmt: skip


@dataclass(frozen=True)
class Division:
    """How many processes share a model: each layer's matrices, the stack of layers, and chunks of each stage."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1


def shrink_config(
    config: Mapping[str, Any], family: Family, before: Division, after: Division, vocabulary: int | None = None
) -> dict[str, Any]:
    """Return the config of a small model that can be divided by ``after`` as the given one can by ``before``.

    Args:
        config: content of a config.json in Paddle's layout.
        family: its row of the family table.
        before: how the model is divided; its layout has been checked.
        after: how the small one is; no degree is larger.
        vocabulary: tokens that the small one has to know; None: a few hundred.

    Returns:
        Content of a config.json.

    Raises:
        ModelDirectoryError: no entry of the config decides about a size.
    """
    plan = family.plan(config)
    small = {key: value for key, value in config.items() if key not in LEFT_OUT}
    small |= {"dtype": "float32", **dict.fromkeys(DROPOUT, 0.0)}
    sizes = small_sizes(plan, before, after, vocabulary)
    for name in OTHER_WIDTHS:
        if isinstance(small.get(name), int):
            small[name] = max(sizes["hidden"] * small[name] // plan.hidden, after.tensor)
    for field, names in ENTRIES.items():
        for name in names:
            if isinstance(small.get(name), int):  # Qwen's intermediate_size counts two matrices
                small[name] = small[name] * sizes[field] // getattr(plan, field)
    own = {"heads": family.num_heads_key, "kv_heads": family.num_kv_heads_key, "layers": family.num_layers_key}
    small |= {name: sizes[field] for field, name in own.items() if name}  # defaults differ from one class to the next
    for field, names in ENTRIES.items():
        _set(small, family, field, names, sizes[field])
    found = family.plan(small)
    for field, size in sizes.items():
        if getattr(found, field) != size:
            raise ModelDirectoryError(
                f"config.json: {field} of this model cannot be made smaller (it stays {getattr(found, field)}, wanted "
                f"{size}): none of {', '.join(ENTRIES[field])} decides about it."
            )
    return small


def small_sizes(plan: TensorPlan, before: Division, after: Division, vocabulary: int | None = None) -> dict[str, int]:
    """Return the sizes of the small model by the plan's names; see ``shrink_config``."""
    t = after.tensor
    kv_heads = t * min(max(plan.kv_heads // before.tensor, 1), 2)
    heads = kv_heads * (plan.heads // plan.kv_heads)
    head_dim = HEAD_DIM if heads < MANY_HEADS else HEAD_DIM // 2
    # Gemma's heads together are wider than its hidden states
    hidden = _multiple(heads * head_dim * plan.hidden / (plan.heads * plan.head_dim), head_dim)
    tokens = FEW_TOKENS if vocabulary is None else vocabulary
    tokens = -(-tokens // t) * t + (1 if plan.vocab % before.tensor else 0)
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "hidden": hidden,
        "head_dim": head_dim,
        "ffn": _multiple(hidden * plan.ffn / plan.hidden, WIDTH_STEP * t),
        "layers": _layers(plan.layers, before, after),
        "vocab": tokens,
    }


def _layers(layers: int, before: Division, after: Division) -> int:
    parts = before.pipeline * before.virtual
    if layers % parts:
        return 2 * after.pipeline + 1  # unequal stages again, none of them empty
    return min(layers // parts, 2) * after.pipeline * after.virtual if parts > 1 else min(layers, 2)


def _multiple(number: float, step: int) -> int:
    return max(round(number / step), 1) * step


def _set(config: dict[str, Any], family: Family, field: str, names: tuple[str, ...], size: int) -> None:
    """Write a size that the config leaves to its class's default: under the first name that the plan listens to."""
    if getattr(family.plan(config), field) == size:
        return
    for name in names:
        for value in (size, 2 * size):
            if name not in config and getattr(family.plan({**config, name: value}), field) == size:
                config[name] = value
                return


def write_random_model(directory: Path, config: Mapping[str, Any], family: Family, seed: int = 0) -> None:
    """Write config and random weights of a small model; a tokenizer is not part of it.

    Args:
        directory: an existing directory.
        config: of ``shrink_config``.
        family: its row of the family table.
        seed: of the weights; each depends on it and on its own name only.
    """
    plan = family.plan(config)
    write_json(directory / "config.json", config)
    tensors = {tensor.name: _random(tensor, seed) for tensor in plan.tensors()}
    for name in plan.buffers:  # the frequencies of rotary positions: half of each head turns, in pairs
        turned = plan.head_dim // 2
        frequencies = 1.0 / 10000 ** (np.arange(0, turned, 2, dtype=np.float32) / turned)
        tensors[name] = NewTensor(DTYPE["float32"], frequencies.shape, lambda array=frequencies: array)
    write_weights(directory, tensors, PADDLE_LAYOUT)


def _random(tensor: PlannedTensor, seed: int) -> NewTensor:
    def make() -> np.ndarray:
        drawn = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())]).normal(0, WEIGHTS_STD, tensor.shape)
        is_scale = len(tensor.shape) == 1 and tensor.name.endswith(".weight")  # of a norm
        return drawn + 1 if is_scale else drawn

    return NewTensor(DTYPE["float32"], tensor.shape, make)
