"""LoRA: low-rank updates beside frozen Linear weights (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import paddle
from paddle import nn
from paddlenlp.peft import LoRAConfig, LoRAModel

from paddlesft.errors import ConfigError, ModelDirectoryError
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.stored import load_pdparams
from paddlesft.parallel.division import Division
from paddlesft.quirks import quick_lora_reduction
from paddlesft.tuning.initial_values import low_rank_input
from paddlesft.tuning.lora_targets import (
    linear_layers,
    linear_names,
    names_of_all_stages,
    refuse_idle_stages,
    target_patterns,
)
from paddlesft.tuning.quantized_lora import MixedLoRAModel

if TYPE_CHECKING:
    from paddlesft.config.model import ModelConfig
    from paddlesft.models.families import Family

log = logging.getLogger("paddlesft")
CONFIG_FILE = "lora_config.json"
PDPARAMS, SAFETENSORS = "lora_model_state.pdparams", "lora_model_state.safetensors"


def add_lora(model: nn.Layer, family: Family, model_config: ModelConfig, seed: int = 42) -> LoRAModel:
    """Put LoRA beside the Linear layers of a model and freeze everything else.

    The matrices A start from Kaiming-uniform values, B from 0, so that the model computes what it did before.

    Args:
        model: the base model; it is changed in place.
        family: its row of the family table.
        model_config: ``lora_rank``, ``lora_alpha`` (2 * rank when None), ``lora_dropout``, ``lora_target_modules``,
            ``lora_bias`` (none | lora | all), ``use_quick_lora``, ``rslora``, ``lora_plus_scale``.
        seed: of the matrices A, which follow from it and from their names alone.

    Returns:
        The model inside a ``LoRAModel``.

    Raises:
        ConfigError: the targets fit no layer, none of a pipeline's stage, or the rank is not positive.
    """
    rank = model_config.lora_rank
    if rank < 1:
        raise ConfigError(f"lora_rank: found {rank}, allowed is a whole number from 1 up (8 is usual).")
    alpha = 2 * rank if model_config.lora_alpha is None else model_config.lora_alpha
    bias = model_config.lora_bias or "none"
    quick = bool(model_config.use_quick_lora)
    if quick and (model_config.lora_dropout > 0 or bias != "none"):
        log.info("use_quick_lora has no effect together with lora_dropout > 0 or lora_bias; the plain form is used")
        quick = False
    if quick and quantized_layers(model):
        log.info("use_quick_lora has no effect over a quantized base; the plain form is used")
        quick = False
    if quick:
        quick_lora_reduction.apply()
    patterns = target_patterns(model, family, model_config.lora_target_modules)
    config = LoRAConfig(
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=model_config.lora_dropout,
        target_modules=patterns,
        trainable_bias=None if bias == "none" else bias,
        rslora=bool(model_config.rslora),
        lora_plus_scale=model_config.lora_plus_scale,
        use_quick_lora=quick,
        tensor_parallel_degree=model.config.tensor_parallel_degree,
        dtype=str(model.config.dtype or paddle.get_default_dtype()),
        base_model_name_or_path=model_config.model_name_or_path,
    )
    lora = wrap(model, config)
    division = Division(lora)
    for name in division.own:
        if name.endswith(".lora_A"):
            division.put(name, low_rank_input(seed, name, division.whole_shape(name)))
    return lora


def wrap(model: nn.Layer, config: LoRAConfig) -> LoRAModel:
    """Put ``LoRAModel`` around a model; the config's targets are names in the whole model, and stay so.

    Raises:
        ConfigError: the targets fit no layer of a pipeline's stage.
    """
    patterns = [config.target_modules] if isinstance(config.target_modules, str) else list(config.target_modules)
    refuse_idle_stages(model, patterns)
    layers = linear_layers(model)
    if any(own != name for name, own in layers.items()):  # a stage of a pipeline
        fitting = [own for name, own in layers.items() if any(re.fullmatch(pattern, name) for pattern in patterns)]
        config.target_modules = [re.escape(own) for own in fitting]
    with quiet_paddlenlp():
        lora = MixedLoRAModel(model, config)
    lora.lora_config.target_modules = patterns
    return lora


def adapter_weights(path: Path) -> dict[str, np.ndarray]:
    """Read the weights of a LoRA directory, by the names of the model's state.

    Raises:
        ModelDirectoryError: the directory holds no LoRA weights.
    """
    if (path / PDPARAMS).is_file():
        return load_pdparams(path / PDPARAMS, return_numpy=True)
    for name in (SAFETENSORS, "peft_model.safetensors"):
        if (path / name).is_file():
            from safetensors.numpy import load_file

            return load_file(path / name)
    there = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    raise ModelDirectoryError(
        f"{path} is not a LoRA directory: found {', '.join(there[:8]) or 'nothing'}; "
        f"needed {CONFIG_FILE} and {PDPARAMS} or {SAFETENSORS}."
    )


def load_lora(model: nn.Layer, path: str | Path, merge: bool = False) -> nn.Layer:
    """Put a saved LoRA adapter on its base model.

    Args:
        model: the base model; it is changed in place.
        path: a LoRA directory.
        merge: add the adapter to the weights and return the plain model.

    Returns:
        A ``LoRAModel``, ready to train on or to compute with; the plain model when ``merge``.

    Raises:
        ModelDirectoryError: files are missing, or names or shapes do not fit the base model; or ``merge`` is asked for
            and layers of the base are quantized.
        ConfigError: the adapter has nothing in a pipeline's stage.
    """
    path = Path(path)
    if merge and quantized_layers(model):
        raise ModelDirectoryError(
            f"The adapter in {path} cannot be added to quantized weights: rounding them again would change what was "
            "trained. paddlesft merge-lora merges into float weights."
        )
    weights = adapter_weights(path)
    if not (path / CONFIG_FILE).is_file():
        raise ModelDirectoryError(f"{path} holds LoRA weights but no {CONFIG_FILE}. Copy the whole directory.")
    try:
        config = LoRAConfig.from_pretrained(str(path))
    except (ValueError, TypeError, json.JSONDecodeError) as error:
        raise ModelDirectoryError(f"{path / CONFIG_FILE} cannot be read: {error}.") from error
    config.tensor_parallel_degree = model.config.tensor_parallel_degree
    if config.use_quick_lora:
        quick_lora_reduction.apply()
    names = linear_names(model)
    for pattern in [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules:
        if not any(re.fullmatch(pattern, name) for name in names):
            log.debug("%s: target %s fits no layer of this model", path, pattern)
    lora = wrap(model, config)
    division = Division(lora)
    elsewhere = set(names_of_all_stages(model, division.own)) - set(division.own)
    weights = {name: array for name, array in weights.items() if name not in elsewhere}
    check_fit(path, {name: list(division.whole_shape(name)) for name in division.own}, weights)
    for name, array in weights.items():
        division.put(name, array)
    if not merge:
        return lora
    lora.merge()
    return lora.restore_original_model()


def fill(state: Mapping[str, paddle.Tensor], weights: Mapping[str, np.ndarray]) -> None:
    """Put weights into the tensors of the same names, in place; paddle's ``set_state_dict`` warns about all others."""
    for name, array in weights.items():
        state[name].set_value(paddle.to_tensor(array).astype(state[name].dtype))


def check_fit(path: Path, wanted: dict[str, list[int]], weights: dict[str, np.ndarray]) -> None:
    """Compare adapter weights with what a model has room for.

    Args:
        path: where the weights come from, for the message.
        wanted: shape by name.
        weights: array by name.

    Raises:
        ModelDirectoryError: names are missing or left over, or shapes differ.
    """
    missing, extra = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    differing = [k for k in wanted if k in weights and list(weights[k].shape) != wanted[k]]
    if not (missing or extra or differing):
        return
    found = []
    if missing:
        found.append(f"{len(missing)} of {len(wanted)} tensors are missing (first: {missing[0]})")
    if extra:
        found.append(f"{len(extra)} tensors have no place in this model (first: {extra[0]})")
    if differing:
        name = differing[0]
        shapes = f"{name} is {list(weights[name].shape)}, the model needs {wanted[name]}"
        found.append(f"{len(differing)} shapes differ (first: {shapes})")
    raise ModelDirectoryError(
        f"The adapter in {path} does not fit this base model: {'; '.join(found)}. Give the base it was trained on "
        "(paddlesft.json in the adapter's directory names it)."
    )


def save_lora(model: LoRAModel, directory: Path) -> None:
    """Write ``lora_model_state.pdparams`` and ``lora_config.json`` into an existing directory."""
    model.save_pretrained(str(directory), save_model_config=False)
