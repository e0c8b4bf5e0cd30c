"""Bases of QLoRA: a float model whose Linear layers are quantized while it is loaded (Dettmers et al. 2023,
arXiv:2305.14314). One float weight is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddlesft.errors import ConfigError, ModelDirectoryError
from paddlesft.models.divided import refuse_other_sizes
from paddlesft.models.filling import fill
from paddlesft.models.quantized.decoder_linears import decoder_linears
from paddlesft.models.quantized.directory import put_layer
from paddlesft.models.quantized.formats import TABLES, WeightFormat, quantize
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.models.stored import stored_weights

ALGORITHMS = {"nf4": "nf4", "fp4": "fp4", "weight_only_int8": "int8", "weight_only_int4": "int4"}  # key -> format
BASE_ENTRY = "base_quantization"  # of an adapter's paddlesft.json


def format_of_keys(
    algorithm: str | None, blocksize: int = 64, double: bool = False, double_block_size: int = 256
) -> WeightFormat | None:
    """Turn PaddleNLP's keys into the format of a base's weights.

    Args:
        algorithm: ``weight_quantize_algo``; None: the base stays as it is.
        blocksize: ``weight_blocksize``, inputs that share a scale; of nf4 and fp4. Integers have a scale per output.
        double: ``weight_double_quant``.
        double_block_size: ``weight_double_quant_block_size``, scales that share a scale then.

    Raises:
        ConfigError: there is no such algorithm.
    """
    if not algorithm:
        return None
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"weight_quantize_algo: found {algorithm!r}, allowed are {', '.join(ALGORITHMS)}.")
    name = ALGORITHMS[algorithm]
    try:
        return WeightFormat(name, blocksize if name in TABLES else 0, double, double_block_size)
    except ModelDirectoryError as error:
        raise ConfigError(f"weight_quantize_algo: {algorithm}: {error}") from error


def entry_of_base(how: WeightFormat) -> dict[str, Any]:
    """Return what an adapter's ``paddlesft.json`` says about its base, under ``base_quantization``."""
    entry = {"format": how.name, "group_size": how.group_size, "double_quantization": how.double_quantization}
    return entry | ({"scales_per_block": how.scales_per_block} if how.double_quantization else {})


def format_of_base(provenance: Mapping[str, Any]) -> WeightFormat | None:
    """Read how the base of an adapter was quantized while it was loaded.

    Args:
        provenance: content of the adapter's ``paddlesft.json``.

    Returns:
        The format; None where the base was loaded as its directory has it.

    Raises:
        ModelDirectoryError: the entry cannot be read.
    """
    entry = provenance.get(BASE_ENTRY)
    if not entry:
        return None
    try:
        return WeightFormat(
            entry["format"], entry["group_size"], entry["double_quantization"], entry.get("scales_per_block", 256)
        )
    except (KeyError, TypeError, ModelDirectoryError) as error:
        raise ModelDirectoryError(
            f"paddlesft.json: {BASE_ENTRY} is damaged ({error!r}). Get the adapter's directory again."
        ) from error


@paddle.no_grad()
def fill_quantizing(model: nn.Layer, directory: Path, how: WeightFormat) -> set[str]:
    """Fill a model from float weights and quantize its decoder's Linear layers on the way.

    Args:
        model: built under ``paddle.LazyGuard``, so that its float weights do not exist.
        directory: holds them, in Paddle's layout.
        how: what the Linear layers get.

    Returns:
        The names of the weights that the directory holds, those that were quantized by their new names.

    Raises:
        ModelDirectoryError: weights are missing or have other sizes than the config says.
    """
    stored = stored_weights(directory)
    names = set(stored)
    state = model.state_dict()
    wrong = [name for name in state if name in stored and tuple(stored[name].shape) != tuple(state[name].shape)]
    refuse_other_sizes(directory, [(name, list(stored[name].shape), list(state[name].shape)) for name in wrong])
    for name, linear in decoder_linears(model).items():
        weight = f"{name}.weight"
        if weight not in stored:
            continue  # its uninitialized weight is found missing by the caller
        new = QuantizedLinear(*linear.weight.shape, how, bias=linear.bias is not None)
        # as stored, not in the model's type, which differs between CPU and GPU: training, inference and merging
        # have to find the same codes
        new.take(quantize(_tensor(stored[weight].make()), how))
        put_layer(model, name, new)
        names = names - {weight} | {f"{name}.{part}" for part in new.stored}
    for name, tensor in model.state_dict().items():
        if name in stored:
            fill(tensor, stored[name].make())
    return names


def _tensor(array: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(array if np.issubdtype(array.dtype, np.integer) else np.asarray(array, dtype=np.float32))
