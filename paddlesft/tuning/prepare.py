"""From a base model and a config to the model that is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import paddle
from paddle import nn
from paddle.distributed.fleet.base import topology
from paddlenlp.peft import LoRAModel, PrefixModelForCausalLM

from paddlesft.errors import ConfigError
from paddlesft.models.families import family_of
from paddlesft.models.provenance import read_provenance
from paddlesft.models.quantized.directory import LayerRecord, quantized_layers
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.models.quantized.on_load import format_of_base, format_of_keys
from paddlesft.tuning.full import train_all_weights
from paddlesft.tuning.lora import add_lora, load_lora, save_lora
from paddlesft.tuning.prefix import add_prefix, load_prefix, save_prefix
from paddlesft.tuning.quantized_lora import refuse_full_tuning, refuse_rounded_activations

if TYPE_CHECKING:
    from paddlesft.config import RunConfig

log = logging.getLogger("paddlesft")


def tuning_method(run_config: RunConfig) -> str:
    """Return what a config asks for: ``"lora"``, ``"prefix"`` or ``"full"``.

    Raises:
        ConfigError: LoRA and Prefix-Tuning are both asked for.
    """
    lora, prefix = run_config.model.lora, run_config.model.prefix_tuning
    if lora and prefix:
        raise ConfigError("lora and prefix_tuning are both true; a run trains one of them. Set one to false.")
    return "lora" if lora else "prefix" if prefix else "full"


def base_format(run_config: RunConfig) -> WeightFormat | None:
    """Return the format that the base's Linear layers get while it is loaded (QLoRA); None: they stay as stored.

    Raises:
        ConfigError: ``weight_quantize_algo`` or a key that belongs to it has an impossible value.
    """
    config = run_config.model
    return format_of_keys(
        config.weight_quantize_algo,
        config.weight_blocksize,
        config.weight_double_quant,
        config.weight_double_quant_block_size,
    )


def refuse_untrainable(run_config: RunConfig, layers: Mapping[str, LayerRecord | QuantizedLinear]) -> None:
    """Refuse to train what cannot be trained over quantized layers; a run asks before it reads its data.

    Args:
        run_config: the resolved config.
        layers: the base's quantized layers by name, or what its directory says of them.

    Raises:
        ConfigError: they round activations, or all weights are to be trained.
    """
    if not run_config.training.do_train:
        return
    refuse_rounded_activations(layers)
    if tuning_method(run_config) == "full":
        refuse_full_tuning(layers)


def prepare_for_tuning(model: nn.Layer, run_config: RunConfig) -> nn.Layer:
    """Make a base model trainable as the config says.

    Adapters start from values that follow from ``training.seed`` and the names of their weights: the same seed gives
    the same start, whatever was computed before and however the model is divided among ranks. With ``lora_path`` /
    ``prefix_path`` the adapter starts from that directory instead.

    Args:
        model: the base model; it is changed in place.
        run_config: the resolved config.

    Returns:
        The model to train.

    Raises:
        ConfigError: keys that contradict each other or the model.
        ModelDirectoryError: the adapter to start from does not fit.
    """
    method = tuning_method(run_config)
    config, family = run_config.model, family_of(model.config)
    paddle.seed(run_config.training.seed)
    refuse_untrainable(run_config, quantized_layers(model))
    if method == "full":
        return train_all_weights(model)
    path = config.lora_path if method == "lora" else config.prefix_path
    if path:
        _compare_bases(run_config, path)
    if method == "lora":
        if not config.lora_path:
            return add_lora(model, family, config, run_config.training.seed)
        tuned = load_lora(model, config.lora_path)
        _use_saved_shape(run_config, "lora_rank", tuned.lora_config.r, config.lora_path)
        _use_saved_shape(run_config, "lora_alpha", tuned.lora_config.lora_alpha, config.lora_path)
        return tuned
    if not config.prefix_path:
        return add_prefix(model, family, config, run_config.training.seed)
    tuned = load_prefix(model, config.prefix_path)
    _use_saved_shape(run_config, "num_prefix_tokens", tuned.prefix_config.num_prefix_tokens, config.prefix_path)
    return tuned


def _compare_bases(run_config: RunConfig, path: str) -> None:
    """Say it when the adapter to start from was trained over other base weights."""
    before, now = format_of_base(read_provenance(path)), base_format(run_config)
    if before != now:
        shown = [how.name if how else "not quantized while loading" for how in (before, now)]
        log.warning(
            "%s was trained over a base of %s, now weight_quantize_algo gives %s; it has to get used to other weights",
            path, *shown,
        )  # fmt: skip


def _use_saved_shape(run_config: RunConfig, key: str, saved: int, path: str) -> None:
    given = getattr(run_config.model, key)
    if given == saved:
        return
    if run_config.was_set(key):
        raise ConfigError(f"{key}: found {given}, but the adapter in {path} has {saved}. Leave the key out to use it.")
    run_config.derive(key, saved, f"as in {path}")


def save_adapter(model: nn.Layer, directory: Path) -> bool:
    """Write the weights and the config of a model's adapter into an existing directory.

    Returns:
        False when the model has no adapter (full fine-tuning), in which case nothing is written.
    """
    if isinstance(model, LoRAModel):
        save_lora(model, directory)
    elif isinstance(model, PrefixModelForCausalLM):
        save_prefix(model, directory)
    else:
        return False
    return True


def parameter_counts(model: nn.Layer) -> tuple[int, int]:
    """Return how many parameters of a model are trained, and how many there are.

    Where the model is divided among ranks, those of the whole model: a part counts as many times as there are parts, a
    weight that each rank holds once, a matrix that two pipeline stages share in the first one; the codes of quantized
    weights too. All ranks call it.
    """
    layout = topology._HYBRID_PARALLEL_GROUP
    parts = layout.get_model_parallel_world_size() if layout is not None else 1
    counts = np.zeros(2, dtype=np.int64)
    counts[1] = sum(layer.in_features * layer.out_features for layer in quantized_layers(model).values())
    for parameter in model.parameters():
        if getattr(parameter, "is_firstly_shared", True):
            size = int(np.prod(parameter.shape)) * (parts if parameter.is_distributed else 1)
            counts += (0 if parameter.stop_gradient else size, size)
    if layout is not None and layout.get_pipe_parallel_world_size() > 1:
        total = paddle.to_tensor(counts)
        paddle.distributed.all_reduce(total, group=layout.get_pipe_parallel_group())
        counts = total.numpy()
    return int(counts[0]), int(counts[1])
