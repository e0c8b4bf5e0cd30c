"""Each rank's own part of the weights in a file of its own, named and filled as PaddleNLP does: nothing is gathered.

``paddlesft merge-shards`` puts such files together.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paddle
import paddle.distributed as dist
from paddlenlp.peft import LoRAConfig, LoRAModel

from paddlesft.errors import CheckpointError
from paddlesft.models.families import family_of
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.models.pdparams import pickled_arrays, write_pdparams
from paddlesft.models.provenance import write_provenance
from paddlesft.parallel.division import Division, to_host, to_tensor
from paddlesft.parallel.place import is_first_copy, part_name

AXES = ("tensor", "pipeline")  # that cut weights; under sharding stages 1 and 2 every rank has them whole


def weights_file(model: paddle.nn.Layer) -> str:
    """Return the name of this rank's file."""
    stem = "lora_model_state" if isinstance(model, LoRAModel) else "model_state"
    return f"{stem}.{part_name(*AXES)}.pdparams"


def save_rank_weights(model: paddle.nn.Layer, division: Division, directory: Path, facts: Mapping[str, Any]) -> None:
    """Write this rank's part; the first rank adds the configs.

    Args:
        model: this rank's part, with its adapter.
        division: how it is divided.
        directory: an existing directory being written.
        facts: entries for ``paddlesft.json``.
    """
    if is_first_copy("data", "sharding"):
        arrays = {name: lambda t=tensor: to_host(t) for name, tensor in division.own.items()}
        write_pdparams(directory / weights_file(model), arrays)
    if dist.get_rank() != 0:
        return
    with quiet_paddlenlp():
        config = copy.deepcopy(model.config)
        config.architectures = [family_of(model).causal_lm]
        config.save_pretrained(str(directory))
        if isinstance(model, LoRAModel):
            LoRAConfig(**model.lora_config.to_dict()).save_pretrained(str(directory))
    kind = "adapter" if isinstance(model, LoRAModel) else "model"
    write_provenance(directory, **{"kind": kind, "dtype": str(model.config.dtype), **facts})


def load_rank_weights(model: paddle.nn.Layer, division: Division, directory: Path) -> None:
    """Put back what ``save_rank_weights`` wrote in the same layout.

    Raises:
        CheckpointError: this rank's file is not there, or does not fit.
    """
    path = directory / weights_file(model)
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in directory.glob("*model_state*.pdparams"))) or "none"
        raise CheckpointError(
            f"{directory} has no {path.name}, this rank's part of the weights (found {there}). Copy the files of all "
            "ranks into one directory that every node sees."
        )
    arrays = {name: (shape, load) for name, _, shape, load in pickled_arrays(path)}
    wrong = [k for k, own in division.own.items() if k not in arrays or list(arrays[k][0]) != list(own.shape)]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit this rank's part of the model: {len(wrong)} of {len(division.own)} tensors are "
            f"missing or have another shape (first: {wrong[0]}). Resume with the config that wrote it."
        )
    for name, own in division.own.items():
        own.set_value(to_tensor(arrays[name][1](), own.dtype))
