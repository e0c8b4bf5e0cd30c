"""Shards of a tensor- or pipeline-parallel run -> one directory that a single process loads.

Every part is checked before anything is written; one weight at a time is in memory; what was written is read back and
every part found again in it, bit for bit, before the directory takes its name.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.checkpoints.shard_files import CONFIG_OF, ShardFiles, find_shards
from paddlesft.checkpoints.shard_plan import Piece, ShardPlan, plan_merge, same_bits, without_degrees
from paddlesft.checkpoints.verify import logits_of, prompt_ids, release
from paddlesft.directories import new_directory, write_json
from paddlesft.errors import CheckpointError
from paddlesft.models.directory import TOKENIZER_FILES, copy_tokenizer, read_object
from paddlesft.models.families import family_of
from paddlesft.models.pdparams import pickled_arrays, write_pdparams
from paddlesft.models.provenance import fingerprint, read_provenance, write_provenance
from paddlesft.models.resolve import resolve_model
from paddlesft.models.tensor_division import prefix_column_order
from paddlesft.models.weights import CODE, DTYPE, PADDLE_LAYOUT, NewTensor, read_weights, write_weights

logger = logging.getLogger("paddlesft")

WEIGHTS_OF = {"lora": "lora_model_state.pdparams", "prefix": "prefix_model_state.pdparams"}
CACHES = "pre_caches.npy"


@dataclass(frozen=True)
class ShardReport:
    """What a merge of shards did.

    Attributes:
        output: the new directory.
        kind: "model", "lora" or "prefix".
        layout: how the run was divided, in words.
        files: number of weight files read.
        tensors: number of weights written.
        joined: how many of them were put together from parts.
        parts: how many parts were found again in what was written.
        dtype: type of most of the weights.
        whole: the checkpoint held whole weights already and was copied.
        logits: the largest absolute logit of the merged model; None when it was not loaded.
        notices: what the user should know.
        seconds: wall-clock time.
    """

    output: Path
    kind: str
    layout: str
    files: int
    tensors: int
    joined: int
    parts: int
    dtype: str
    whole: bool
    logits: float | None
    notices: list[str]
    seconds: float


def merge_shards(
    path: str | Path,
    output: str | Path,
    base: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
    copy_whole: bool = False,
    compute_logits: bool = False,
) -> ShardReport:
    """Merge the shards of a checkpoint into a new directory that is complete and proved, or not there at all.

    Args:
        path: a checkpoint of a full, LoRA or Prefix-Tuning run with tensor or pipeline parallelism.
        output: the directory to create.
        base: the base model of an adapter whose directory has no config.json; None: the one that it names.
        overwrite: replace ``output`` when it has content.
        force: take the first rank's values where weights that all ranks should share differ.
        copy_whole: copy a checkpoint that holds whole weights already (unified checkpoint).
        compute_logits: load the merged model too and compute logits, which needs memory for all of it.

    Returns:
        The report.

    Raises:
        CheckpointError: parts are missing or do not belong together, or ``path`` holds no parts.
        ModelDirectoryError: a file is missing or damaged.
        UserError: ``output`` has content and ``overwrite`` is false.
    """
    began = time.perf_counter()
    shards = find_shards(path)
    if Path(output).resolve().is_relative_to(shards.path.resolve()):
        raise CheckpointError(
            f"output_path: {output} lies in the checkpoint itself. It is never changed: choose another directory."
        )
    if not shards.is_sharded and not copy_whole:
        raise CheckpointError(
            f"{shards.path} holds whole weights already ({shards.name(min(shards.files))}; a unified checkpoint or a "
            "single process): there is nothing to merge. To copy it as a plain model directory, without the keys of "
            "the parallel run, add --copy_whole."
        )
    config, own = read_configs(shards, base)
    plan = plan_merge(shards, config, own, force)
    with new_directory(output, overwrite=overwrite) as scratch:
        notices = list(plan.notices)
        _write_weights(scratch, shards, plan, own)
        parts = prove_parts(scratch, shards, plan, own, force)
        _write_configs(scratch, shards, config, own, notices)
        logits = _try(scratch) if compute_logits and shards.kind == "model" else None
        if logits is not None and not np.isfinite(logits):
            raise CheckpointError(f"The merged model computes no numbers (NaN or infinity). {output} was not written.")
        dtype = _dtype(plan.pieces)
        _write_provenance(scratch, shards, dtype, parts)
    return ShardReport(
        output=Path(output),
        kind=shards.kind,
        layout=shards.layout(),
        files=sum(map(len, shards.files.values())),
        tensors=len(plan.pieces) + len(plan.computed),
        joined=sum(piece.division is not None for piece in plan.pieces),
        parts=parts,
        dtype=dtype,
        whole=not shards.is_sharded,
        logits=logits,
        notices=notices,
        seconds=time.perf_counter() - began,
    )


def read_configs(shards: ShardFiles, base: str | Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the model's config and the shards' own.

    Args:
        shards: the checkpoint's files.
        base: the base model of an adapter; None: the one that it names, if its directory has no config.json.

    Returns:
        Content of the model's (the base's) config.json, and of what describes the shards themselves.

    Raises:
        CheckpointError: a file is missing, or the base is not known.
    """
    own_name = CONFIG_OF.get(shards.kind, "config.json")
    if not (shards.path / own_name).is_file():
        raise CheckpointError(f"{shards.path} has no {own_name}. Copy it from the first rank's node.")
    own = read_object(shards.path / own_name)
    if shards.kind == "model":
        return own, own
    if shards.kind == "prefix":  # it says its own shapes
        return {}, own
    if base is None and (shards.path / "config.json").is_file():
        return read_object(shards.path / "config.json"), own
    told = read_provenance(shards.path).get("base") or {}
    for known in (base, told.get("path"), told.get("name"), own.get("base_model_name_or_path")):
        if known and (base or Path(known).is_dir() or known == told.get("name")):
            return read_object(resolve_model(known) / "config.json"), own
    raise CheckpointError(
        f"{shards.path} has no config.json and does not name its base model, whose shapes are needed. "
        "Give it with --base_model_name_or_path."
    )


def _written_order(shards: ShardFiles, own: Mapping[str, Any]) -> tuple[str, np.ndarray] | None:
    """Return the prefix's weight whose columns change places (``prefix_column_order``), and their order."""
    if shards.kind != "prefix" or shards.degree == 1:
        return None
    return ("3" if own.get("prefix_projection") else "0"), prefix_column_order(own, shards.degree)


def _write_weights(scratch: Path, shards: ShardFiles, plan: ShardPlan, own: Mapping[str, Any]) -> None:
    if shards.kind == "model":
        tensors = {piece.name: NewTensor(piece.dtype, piece.shape, piece.make) for piece in plan.pieces}
        for name, value in plan.computed.items():
            tensors[name] = NewTensor(CODE[value.dtype], value.shape, lambda value=value: value)
        write_weights(scratch, tensors, PADDLE_LAYOUT)
        return
    order = _written_order(shards, own)

    def ordered(piece: Piece) -> np.ndarray:
        whole = piece.make()
        return whole[..., order[1]] if order and piece.name.split(".")[0] == order[0] else whole

    arrays = {piece.name: lambda piece=piece: ordered(piece) for piece in plan.pieces}
    write_pdparams(scratch / WEIGHTS_OF[shards.kind], arrays)
    if shards.kind == "prefix":
        np.save(scratch / CACHES, prefix_caches({name: make() for name, make in arrays.items()}, own))


def prefix_caches(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
    """Compute the keys and values that a prefix stands for.

    Args:
        weights: its encoder's weights.
        config: content of prefix_config.json.

    Returns:
        [layers, 2, key/value heads, prefix tokens, head size], as ``pre_caches.npy`` holds them.
    """
    hidden = weights["0.weight"].astype(np.float32)
    if config.get("prefix_projection"):
        hidden = np.tanh(hidden @ weights["1.weight"].astype(np.float32) + weights["1.bias"].astype(np.float32))
        hidden = hidden @ weights["3.weight"].astype(np.float32) + weights["3.bias"].astype(np.float32)
    heads = config.get("multi_query_group_num") or config["num_attention_heads"]
    size = config["hidden_size"] // config["num_attention_heads"]
    caches = hidden.reshape(config["num_prefix_tokens"], 2, config["num_hidden_layers"], heads, size)
    return np.ascontiguousarray(caches.transpose(2, 1, 3, 0, 4))


def prove_parts(directory: Path, shards: ShardFiles, plan: ShardPlan, own: Mapping[str, Any], force: bool) -> int:
    """Read what was written and find every rank's part in it again, bit for bit.

    Args:
        directory: what was written.
        shards: the checkpoint's files.
        plan: what was made of them.
        own: content of the config that describes the shards.
        force: of weights that all ranks share, look for the first rank's only.

    Returns:
        The number of parts.

    Raises:
        CheckpointError: a part is not there.
    """
    if shards.kind == "model":
        stored, _ = read_weights(directory)
        readers = {name: tensor.load for name, tensor in stored.items()}
    else:
        readers = {name: load for name, _, _, load in pickled_arrays(directory / WEIGHTS_OF[shards.kind])}
    order = _written_order(shards, own)
    found = 0
    for piece in plan.pieces:
        whole = readers[piece.name]()
        if order and piece.name.split(".")[0] == order[0]:
            whole = whole[..., np.argsort(order[1])]
        padded = _with_padding(whole, piece)
        for part in piece.parts[:1]:  # copies in other stages were compared before
            for rank, (file, value) in enumerate(part[:1] if force and not piece.division else part):
                held, cut = value.make(), padded is not whole
                there = piece.division.holds(padded, held, rank, cut) if piece.division else same_bits(padded, held)
                if not there and not (cut and not piece.division):
                    raise CheckpointError(
                        f"{piece.name}: the part in {file} is not found again in what was written. {shards.path} was "
                        "not merged; did its files change meanwhile?"
                    )
                found += 1
                held = None  # give it back before the next one is read
    return found


def _with_padding(whole: np.ndarray, piece: Piece) -> np.ndarray:
    """Bring back the size that the parts have together, with zeros where padding was cut off."""
    part = piece.parts[0][0][1].shape
    full = piece.division.whole_shape(part, len(piece.parts[0])) if piece.division else part
    if full == whole.shape:
        return whole
    return np.pad(whole, [(0, has - kept) for has, kept in zip(full, whole.shape)])


def _write_configs(
    scratch: Path, shards: ShardFiles, config: Mapping[str, Any], own: Mapping[str, Any], notices: list[str]
) -> None:
    if shards.kind == "model":
        named = {"architectures": [family_of(dict(config)).causal_lm]}  # not the class for pipelines
        write_json(scratch / "config.json", without_degrees(config) | named)
        if (shards.path / "generation_config.json").is_file():
            shutil.copyfile(shards.path / "generation_config.json", scratch / "generation_config.json")
    else:
        write_json(scratch / CONFIG_OF[shards.kind], without_degrees(own))
        if (shards.path / "config.json").is_file():
            write_json(scratch / "config.json", without_degrees(read_object(shards.path / "config.json")))
    source = next((place for place in (shards.path, shards.path.parent) if _has_tokenizer(place)), None)
    if source is None:
        notices.append(f"{shards.path} has no tokenizer files: copy those of the base model beside the merged weights.")
    else:
        copy_tokenizer(source, scratch)
        if source != shards.path:
            notices.append(f"The tokenizer was taken from {source}: the checkpoint has none.")


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def _write_provenance(scratch: Path, shards: ShardFiles, dtype: str, parts: int) -> None:
    told = read_provenance(shards.path) or read_provenance(shards.path.parent)
    kept = {key: value for key, value in told.items() if key not in ("format", "versions", "fingerprint", "source")}
    write_provenance(
        scratch,
        **kept
        | {
            "kind": "model" if shards.kind == "model" else "adapter",
            "source": {"name": str(shards.path.resolve()), "format": "merged_shards"},
            "dtype": dtype,
            "fingerprint": fingerprint(scratch),
            "shards": {
                "tensor_parallel_degree": shards.degree,
                "pipeline_parallel_degree": shards.stages,
                "files": sorted(file.name for files in shards.files.values() for file in files),
                "parts_found_again": parts,
            },
        },
    )


def _dtype(pieces: list[Piece]) -> str:
    sizes: dict[str, int] = {}
    for piece in pieces:
        sizes[piece.dtype] = sizes.get(piece.dtype, 0) + int(np.prod(piece.shape))
    largest = max(sizes, key=lambda code: sizes[code])
    return {code: name for name, code in DTYPE.items()}.get(largest, largest)


def _try(directory: Path) -> float:
    """Load the merged model, compute logits on four prompts and return the largest; NaN when one is no number."""
    from paddlesft.models.load import load_model
    from paddlesft.models.tokenizers import load_tokenizer

    model = load_model(directory, dtype="float32")
    prompts = prompt_ids(load_tokenizer(directory) if _has_tokenizer(directory) else None, model.config.vocab_size)
    largest = max(float(np.abs(row).max()) for row in logits_of(model, prompts))
    del model
    release()
    return largest
