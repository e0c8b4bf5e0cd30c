"""What a model takes on disk and in memory, by kinds of tensors."""

from __future__ import annotations

import resource
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from paddlesft.models.load import without_second_names
from paddlesft.models.weights import DTYPE, read_weights

QUANTIZED, EMBEDDINGS, NORMS, REST = "quantized layers", "embeddings", "norms", "head and others"
KINDS = (QUANTIZED, EMBEDDINGS, NORMS, REST)


@dataclass
class Sizes:
    """Bytes.

    Attributes:
        disk: of the directory's weights.
        memory: of the model's tensors, shared ones counted once.
        disk_of, memory_of: the same by kind; ``disk_of`` is empty where the files do not name their tensors.
    """

    disk: int = 0
    memory: int = 0
    disk_of: dict[str, int] = field(default_factory=dict)
    memory_of: dict[str, int] = field(default_factory=dict)


def sizes_of(model: nn.Layer, directory: Path, quantized: Collection[str]) -> Sizes:
    """Measure a model and its directory.

    Args:
        model: loaded from it.
        directory: in Paddle's layout.
        quantized: names of the Linear layers that are, or will be, quantized.
    """
    kinds = _kinds(model, quantized)
    sizes = Sizes(disk_of(directory))
    for name, tensor in without_second_names(model).items():
        sizes.memory += (count := int(np.prod(tensor.shape)) * tensor.element_size())
        sizes.memory_of[kinds[name]] = sizes.memory_of.get(kinds[name], 0) + count
    for name, tensor in read_weights(directory)[0].items():
        kind = kinds.get(name, REST)
        sizes.disk_of[kind] = sizes.disk_of.get(kind, 0) + tensor.end - tensor.begin
    return sizes


def disk_of(directory: Path) -> int:
    """Return the bytes of a directory's files of weights."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.suffix in (".safetensors", ".pdparams"))


def stored_dtype(directory: Path, default: str) -> str:
    """Return the type that most of a directory's weights are stored in; config.json may say another one.

    Args:
        directory: of the model.
        default: for files that do not say it.
    """
    counts: dict[str, int] = {}
    for tensor in read_weights(directory)[0].values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.end - tensor.begin
    names = {code: name for name, code in DTYPE.items()}
    return names.get(max(counts, key=lambda code: counts[code]), default) if counts else default


def peak_memory() -> int:
    """Return the most bytes that this process has held: on the GPU if it computes there, else in main memory."""
    if not paddle.get_device().startswith("cpu"):
        return int(paddle.device.cuda.max_memory_allocated())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _kinds(model: nn.Layer, quantized: Collection[str]) -> Mapping[str, str]:
    owners = {name: type(layer).__name__.lower() for name, layer in model.named_sublayers(include_self=True)}
    found = {}
    for name in model.state_dict():
        owner = name.rpartition(".")[0]
        kind = owners.get(owner, "")
        if owner in quantized:
            found[name] = QUANTIZED
        else:
            found[name] = EMBEDDINGS if "embedding" in kind else NORMS if "norm" in kind else REST
    return found
