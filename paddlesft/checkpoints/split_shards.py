"""A whole model or LoRA adapter -> one file per rank, as parallel runs of PaddleNLP load them."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.checkpoints.adapter import CONFIG_FILE, read_adapter
from paddlesft.checkpoints.merge_shards import read_configs
from paddlesft.checkpoints.shard_files import ShardFiles, find_shards
from paddlesft.checkpoints.shard_plan import plan_merge, same_bits, without_degrees
from paddlesft.directories import new_directory, write_json
from paddlesft.errors import CheckpointError
from paddlesft.models.directory import copy_tokenizer, read_config, read_object
from paddlesft.models.families import family_of
from paddlesft.models.family import Family
from paddlesft.models.load import paddle_directory
from paddlesft.models.pdparams import write_pdparams
from paddlesft.models.provenance import FILE as PROVENANCE
from paddlesft.models.provenance import fingerprint, read_provenance, write_provenance
from paddlesft.models.quantized.origin import refuse_quantized
from paddlesft.models.shapes import Skeleton, skeleton_of
from paddlesft.models.stored import stored_weights
from paddlesft.models.tensor_division import (
    LOW_RANK,
    Division,
    adapter_division,
    division_of_whole,
    tensor_parallel_actions,
)
from paddlesft.models.weights import NUMPY, PADDLE_LAYOUT, NewTensor, write_file
from paddlesft.parallel.stages import stage_layers

LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.")
MODEL_STEM = {"pdparams": "model_state", "safetensors": "model"}


@dataclass(frozen=True)
class SplitReport:
    """What a split did.

    Attributes:
        output: the new directory.
        kind: "model" or "lora".
        files: the ranks' files, in order.
        largest: bytes of the largest file.
        divided: number of weights that are divided.
        tensors: number of weights.
        seconds: wall-clock time.
    """

    output: Path
    kind: str
    files: list[str]
    largest: int
    divided: int
    tensors: int
    seconds: float


def split_shards(
    path: str | Path,
    output: str | Path,
    tensor_parallel_degree: int = 1,
    pipeline_parallel_degree: int = 1,
    ending: str = "pdparams",
    base: str | Path | None = None,
    overwrite: bool = False,
) -> SplitReport:
    """Split a model or a LoRA adapter into one file per rank; merging them gives it back bit for bit (this is checked).

    Args:
        path: a model directory or a LoRA adapter's.
        output: the directory to create.
        tensor_parallel_degree: ranks that divide every matrix among them.
        pipeline_parallel_degree: stages that divide the layers among them.
        ending: "pdparams" or "safetensors" (adapters: pdparams only).
        base: the base model of an adapter whose directory has no config.json; None: the one that it names.
        overwrite: replace ``output`` when it has content.

    Raises:
        CheckpointError: the degrees do not divide the model; everything that is wrong, at once.
        ModelDirectoryError: ``path`` is no model and no adapter, or its weights are quantized.
        UserError: ``output`` has content and ``overwrite`` is false.
    """
    began = time.perf_counter()
    path, tp, pp = Path(path), tensor_parallel_degree, pipeline_parallel_degree
    if tp * pp == 1:
        raise CheckpointError(
            "Nothing to split: tensor_parallel_degree and pipeline_parallel_degree are both 1. "
            "Set one of them to the number of cards."
        )
    if Path(output).resolve().is_relative_to(path.resolve()):
        raise CheckpointError(f"output_path: {output} lies in {path} itself. Choose another directory.")
    if (path / "prefix_config.json").is_file():
        raise CheckpointError(f"{path} is a prefix, which every rank loads whole: there is nothing to split.")
    kind = "lora" if (path / CONFIG_FILE).is_file() else "model"
    if kind == "lora":
        config, own = read_configs(ShardFiles(path, kind), base)
        weights, ending = read_adapter(path).tensors, "pdparams"
    else:
        path = paddle_directory(path)
        refuse_quantized(path, "to divide them among cards")
        config = own = read_config(path)
        weights = stored_weights(path)
    family, skeleton = family_of(config), skeleton_of(without_degrees(config))
    _refuse(path, config, family, tp, pp)
    divisions = _divisions(path, weights, config, family, skeleton, tp) if tp > 1 else {}
    with new_directory(output, overwrite=overwrite) as scratch:
        stem = "lora_model_state" if kind == "lora" else MODEL_STEM[ending]
        files = []
        for tensor in range(tp):
            for stage in range(pp):
                rank = "_".join([f"tp{tensor:02d}"] * (tp > 1) + [f"pp{stage:02d}"] * (pp > 1))
                held = _held(weights, skeleton, config[family.num_layers_key], stage, pp)
                files.append(scratch / f"{stem}.{rank}.{ending}")
                _write_rank(files[-1], held, divisions, tensor, tp)
        _write_configs(scratch, path, kind, own, family, tp, pp)
        _prove(scratch, weights, config, own | {"tensor_parallel_degree": tp})
        largest = max(file.stat().st_size for file in files)
    return SplitReport(
        output=Path(output),
        kind=kind,
        files=[file.name for file in files],
        largest=largest,
        divided=len(divisions),
        tensors=len(weights),
        seconds=time.perf_counter() - began,
    )


def _refuse(path: Path, config: Mapping[str, Any], family: Family, tp: int, pp: int) -> None:
    problems = []
    if tp > 1 and not family.tensor_parallel:
        problems.append(f"family {family.name} has no tensor parallelism in PaddleNLP")
    heads = config.get(family.num_heads_key)
    if heads and heads % tp:
        problems.append(f"{family.num_heads_key} is {heads}, which tensor_parallel_degree {tp} does not divide")
    if pp > 1 and not family.pipe_class:
        problems.append(f"family {family.name} has no pipeline parallelism in PaddleNLP")
    layers = config.get(family.num_layers_key)
    if layers and layers % pp:
        problems.append(f"{family.num_layers_key} is {layers}, which pipeline_parallel_degree {pp} does not divide")
    _raise(path, problems)


def _raise(path: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(
            f"{path} cannot be split so: {'; '.join(problems[:6])}. Nothing was written. Choose other degrees."
        )


def _divisions(
    path: Path, weights: Mapping[str, NewTensor], config: Mapping[str, Any], family: Family, skeleton: Skeleton, tp: int
) -> dict[str, Division]:
    actions = tensor_parallel_actions(config, family, [*skeleton.shapes], tp)
    divisions, problems = {}, []
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        weight = f"{layer}.weight" if kind in LOW_RANK else name
        if weight not in actions:  # PaddleNLP has no rule for some heads that are the embedding
            weight = skeleton.second_names.get(weight, weight)
        if weight not in actions:
            continue
        shape = skeleton.shapes[weight] if kind in LOW_RANK else tensor.shape
        whole = division_of_whole(actions[weight], shape, tp)
        if whole is None:
            problems.append(f"{name} is {list(shape)}, which cannot be divided by {tp}")
            continue
        division = adapter_division(actions[weight], kind, shape, tp)
        if division is not None:
            divisions[name] = division
    _raise(path, problems)
    return divisions


def _held(
    weights: Mapping[str, NewTensor], skeleton: Skeleton, number: int, stage: int, pp: int
) -> dict[str, NewTensor]:
    """Return what a stage holds: its layers, the embedding in the first, the last norm and the head in the last."""
    if pp == 1:
        return dict(weights)
    layers = [i for chunk in stage_layers(number, pp)[stage] for i in chunk]
    names = list(skeleton.shapes)
    first_layer = next(i for i, name in enumerate(names) if LAYER.search(name))
    shared = set(skeleton.second_names.values())
    held = {}
    for name, tensor in weights.items():
        found = LAYER.search(name)
        if found:
            mine = int(found[1]) in layers
        else:  # a tied head is the embedding again, in the last stage
            base = re.sub(r"\.lora_[AB]$", ".weight", name)
            front = base in names and names.index(base) < first_layer and base not in skeleton.second_names
            front = front or base in shared
            mine = (stage == 0) if front else (stage == pp - 1)
            mine = mine or (base in shared and stage == pp - 1)
        if mine:
            held[name] = tensor
    return held


def _write_rank(
    file: Path, held: Mapping[str, NewTensor], divisions: Mapping[str, Division], tensor: int, tp: int
) -> None:
    def make(name: str) -> np.ndarray:
        whole = held[name].make()
        return divisions[name].part(whole, tensor, tp) if name in divisions else whole

    if file.suffix == ".pdparams":
        write_pdparams(file, {name: partial(make, name) for name in held})
        return
    parts = {}
    for name, whole in held.items():
        shape = list(whole.shape)
        if name in divisions:
            shape[divisions[name].axis] //= tp
        parts[name] = NewTensor(whole.dtype, tuple(shape), partial(make, name))
    write_file(file, parts, PADDLE_LAYOUT)


def _write_configs(
    scratch: Path, path: Path, kind: str, own: Mapping[str, Any], family: Family, tp: int, pp: int
) -> None:
    degree = {"tensor_parallel_degree": tp}
    if kind == "model":
        named = {"architectures": [family.pipe_class if pp > 1 else family.causal_lm]}
        write_json(scratch / "config.json", dict(own) | degree | named)
    else:
        write_json(scratch / CONFIG_FILE, dict(own) | degree)
        if (path / "config.json").is_file():
            write_json(scratch / "config.json", read_object(path / "config.json") | degree)
    if (path / "generation_config.json").is_file():
        shutil.copyfile(path / "generation_config.json", scratch / "generation_config.json")
    copy_tokenizer(path, scratch)
    told = read_provenance(path) if (path / PROVENANCE).is_file() else {}
    kept = {key: value for key, value in told.items() if key not in ("format", "versions", "fingerprint", "source")}
    source = {"name": str(path.resolve()), "format": "split", "fingerprint": fingerprint(path)}
    shards = {"tensor_parallel_degree": tp, "pipeline_parallel_degree": pp}
    kept = {"kind": "model" if kind == "model" else "adapter"} | kept
    write_provenance(scratch, **kept | {"source": source, "shards": shards})


def _prove(scratch: Path, weights: Mapping[str, NewTensor], config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Merge what was written, in memory and weight by weight, and compare it with the source bit for bit."""
    again = {piece.name: piece for piece in plan_merge(find_shards(scratch), config, own, force=False).pieces}
    for name, tensor in weights.items():
        if name not in again:
            continue  # the second name of a weight
        whole = np.asarray(tensor.make(), dtype=NUMPY[tensor.dtype])
        if not same_bits(again[name].make(), whole):
            raise CheckpointError(
                f"{name} does not come back from its parts, so nothing was written. Did the source change meanwhile?"
            )
