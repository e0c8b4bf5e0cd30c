"""Prefix-Tuning: trained keys and values in front of every layer's own (Li and Liang 2021, arXiv:2101.00190)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import paddle
from paddle import nn
from paddlenlp.peft import PrefixConfig

from paddlesft.errors import ConfigError, ModelDirectoryError
from paddlesft.models.families import family_of
from paddlesft.models.stored import load_pdparams
from paddlesft.tuning.initial_values import layer_weight
from paddlesft.tuning.lora import check_fit, fill
from paddlesft.tuning.prefix_model import PrefixModel

if TYPE_CHECKING:
    from paddlesft.config.model import ModelConfig
    from paddlesft.models.families import Family

CONFIG_FILE = "prefix_config.json"
PDPARAMS = "prefix_model_state.pdparams"
ENCODER = "prefix_encoder"  # first part of its weights' names in the model


def prefix_shape(model: nn.Layer, family: Family) -> dict[str, int]:
    """Return the numbers of ``PrefixConfig`` that follow from the model.

    The prefix fills the key/value heads, of which grouped-query attention has fewer than query heads. PaddleNLP's own
    table leaves that out for Llama and then multiplies tensors of the wrong shape; the family table says it right.
    """
    heads = family.num_heads(model.config)
    return {
        "num_attention_heads": heads,
        "multi_query_group_num": family.prefix_kv_heads(model.config),
        "num_hidden_layers": family.num_layers(model.config),
        "hidden_size": family.head_dim(model.config) * heads,
    }


def add_prefix(model: nn.Layer, family: Family, model_config: ModelConfig, seed: int = 42) -> PrefixModel:
    """Put a trainable prefix in front of a model and freeze the model.

    Args:
        model: the base model.
        family: its row of the family table.
        model_config: ``num_prefix_tokens``, ``prefix_projection``, ``prefix_projection_hidden_size`` (the model's
            hidden size when None).
        seed: of the prefix's first values, which follow from it and from the names of the weights alone.

    Returns:
        The model inside a ``PrefixModel``.

    Raises:
        ConfigError: ``num_prefix_tokens`` is not positive, or the family has no place for a prefix.
    """
    if not family.prefix_tuning:
        raise ConfigError(
            f"prefix_tuning: true, but family {family.name} cannot take a prefix: {family.prefix_refusal}. "
            "Use lora: true instead."
        )
    tokens = model_config.num_prefix_tokens
    if tokens < 1:
        raise ConfigError(f"num_prefix_tokens: found {tokens}, allowed is a whole number from 1 up (128 is usual).")
    config = PrefixConfig(
        num_prefix_tokens=tokens,
        prefix_projection=bool(model_config.prefix_projection),
        prefix_projection_hidden_size=model_config.prefix_projection_hidden_size or model.config.hidden_size,
        dtype=str(model.config.dtype or paddle.get_default_dtype()),
        **prefix_shape(model, family),
    )
    prefix = PrefixModel(model, config, family.prefix_postprocess_function())
    state = prefix.prefix_encoder.state_dict()
    fill(state, {name: layer_weight(seed, f"{ENCODER}.{name}", tensor.shape) for name, tensor in state.items()})
    return prefix


def load_prefix(model: nn.Layer, path: str | Path) -> PrefixModel:
    """Put a saved prefix in front of its base model.

    Args:
        model: the base model.
        path: a directory with ``prefix_config.json`` and ``prefix_model_state.pdparams``.

    Raises:
        ModelDirectoryError: files are missing, or the prefix was trained for a model of another shape.
    """
    path = Path(path)
    missing = [name for name in (CONFIG_FILE, PDPARAMS) if not (path / name).is_file()]
    if missing:
        there = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
        raise ModelDirectoryError(
            f"{path} is not a prefix directory: {' and '.join(missing)} missing "
            f"(found {', '.join(there[:8]) or 'nothing'})."
        )
    try:
        config = PrefixConfig.from_pretrained(str(path))
    except (ValueError, TypeError, json.JSONDecodeError) as error:
        raise ModelDirectoryError(f"{path / CONFIG_FILE} cannot be read: {error}.") from error
    family = family_of(model.config)
    shape = prefix_shape(model, family)
    differing = [k for k, v in shape.items() if getattr(config, k) != v]
    if differing:
        found = ", ".join(f"{k} {getattr(config, k)} (the model has {shape[k]})" for k in differing)
        raise ModelDirectoryError(f"The prefix in {path} was trained for another base model: {found}.")
    prefix = PrefixModel(model, config, family.prefix_postprocess_function())
    weights = load_pdparams(path / PDPARAMS, return_numpy=True)
    check_fit(path, {k: list(v.shape) for k, v in prefix.prefix_encoder.state_dict().items()}, weights)
    fill(prefix.prefix_encoder.state_dict(), weights)
    return prefix


def save_prefix(model: PrefixModel, directory: Path) -> None:
    """Write ``prefix_model_state.pdparams``, ``prefix_config.json``, ``pre_caches.npy`` into an existing directory."""
    training = model.training
    model.eval()  # dropout must not reach the exported keys and values
    with paddle.no_grad():
        model.save_pretrained(str(directory))
    if training:
        model.train()
