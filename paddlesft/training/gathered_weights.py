"""Weights that lie on many ranks -> the files that a single process would write, one weight in memory at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddlenlp.generation import GenerationConfig
from paddlenlp.peft import LoRAConfig, LoRAModel, PrefixModelForCausalLM

from paddlesft.checkpoints.merge_shards import CACHES, WEIGHTS_OF, prefix_caches
from paddlesft.models.families import family_of
from paddlesft.models.load import ONE_PROCESS, quiet_paddlenlp
from paddlesft.models.pdparams import write_pdparams
from paddlesft.models.weights import CODE, DTYPE, PADDLE_LAYOUT, NewTensor, write_weights
from paddlesft.parallel.division import Division, Gathering


def write_gathered(model: paddle.nn.Layer, division: Division, gathering: Gathering, directory: Path) -> None:
    """Write weights and config of a model or adapter on the first rank, while the others run through the gathering.

    Args:
        model: this rank's part, with its adapter.
        division: how it is divided.
        gathering: of its weights.
        directory: an existing directory being written.
    """
    with quiet_paddlenlp():
        if isinstance(model, LoRAModel):
            write_pdparams(directory / WEIGHTS_OF["lora"], _in_turn(gathering))
            LoRAConfig(**model.lora_config.to_dict() | {"tensor_parallel_degree": 1}).save_pretrained(str(directory))
        elif isinstance(model, PrefixModelForCausalLM):
            weights = {name: array for name, array in gathering if array is not None}
            write_pdparams(directory / WEIGHTS_OF["prefix"], {n: lambda a=array: a for n, array in weights.items()})
            model.prefix_config.save_pretrained(str(directory))
            np.save(directory / CACHES, prefix_caches(weights, model.prefix_config.to_dict()))
        else:
            _write_model(model, division, gathering, directory)


def _in_turn(gathering: Gathering) -> dict[str, Any]:
    """Return a function for each weight that gives it; they are to be called in their order."""
    arriving: Iterator[tuple[str, np.ndarray | None]] = iter(gathering)

    def take(name: str) -> np.ndarray:
        arrived, array = next(arriving)
        assert arrived == name and array is not None
        return array

    return {name: lambda name=name: take(name) for name in gathering.parts}


def _write_model(model: paddle.nn.Layer, division: Division, gathering: Gathering, directory: Path) -> None:
    family = family_of(model)
    config = copy.deepcopy(model.config)
    for key, value in ONE_PROCESS.items():
        if hasattr(config, key):
            setattr(config, key, value)
    config.architectures = [family.causal_lm]  # not the class for pipelines
    config.save_pretrained(str(directory))
    generation = getattr(model, "generation_config", None)  # a stage has that of the base's directory, if it has one
    (generation or GenerationConfig.from_model_config(config)).save_pretrained(str(directory))
    take = _in_turn(gathering)
    tensors: dict[str, NewTensor] = {}
    # PaddleNLP itself ties no head of these families and would compute with random numbers; it takes no others
    width = config.hidden_size
    seconds = {
        first: second for second, first in division.second_names.items()
        if family.tie_head and gathering.parts[first].whole_shape[-1] == width
    }  # fmt: skip
    for name, part in gathering.parts.items():
        make = _kept(take[name]) if name in seconds else take[name]
        tensors[name] = NewTensor(DTYPE[part.dtype], part.whole_shape, make)
        if name in seconds:
            tensors[seconds[name]] = NewTensor(DTYPE[part.dtype], part.whole_shape, make)
    for name, value in division.buffers.items():
        tensors[name] = NewTensor(CODE[value.dtype], value.shape, lambda value=value: value)
    write_weights(directory, tensors, PADDLE_LAYOUT)


def _kept(make: Any) -> Any:
    """Let a function be called twice."""
    made: list[np.ndarray] = []

    def again() -> np.ndarray:
        if not made:
            made.append(make())
        return made[0]

    return again
