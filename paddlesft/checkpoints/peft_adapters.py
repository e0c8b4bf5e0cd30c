"""LoRA adapters of Hugging Face PEFT, in both directions.

The two formats hold the same matrices. Ours are named after Paddle's layers and stored as x @ A @ B, PEFT's after
Hugging Face's and transposed (https://huggingface.co/docs/peft, "PEFT checkpoint format"). Where one layer of Hugging
Face's is several of Paddle's (GPT-2's ``c_attn``), several updates of rank r become one of their joint rank, made of
blocks, and one update is cut into several that share its A.

Shape legend: i inputs, o outputs of a layer, r rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.checkpoints.adapter import Adapter, read_adapter
from paddlesft.directories import new_directory, refuse_inside, write_json
from paddlesft.errors import CheckpointError, ModelDirectoryError
from paddlesft.inference.adapter_base import base_of, check_base
from paddlesft.models.directory import TOKENIZER_FILES, copy_tokenizer, read_object
from paddlesft.models.families import family_of
from paddlesft.models.hf_layouts.layout import HEAD, Layout
from paddlesft.models.hf_layouts.tensor_pairs import TensorPair
from paddlesft.models.load import load_config
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.quantized.directory import KEY as QUANTIZATION
from paddlesft.models.resolve import resolve_model
from paddlesft.models.shapes import expected_shapes
from paddlesft.models.weights import read_header

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# What changes the update, or more than the update; the value that leaves it off.
REFUSED: dict[str, tuple[Any, str]] = {
    "use_dora": (False, "DoRA's magnitudes"),
    "modules_to_save": (None, "layers trained as a whole (modules_to_save)"),
    "bias": ("none", "trained biases"),
    "lora_bias": (False, "biases of the update"),
    "layer_replication": (None, "replicated layers"),
    "trainable_token_indices": (None, "trained rows of the embedding"),
    "target_parameters": (None, "targets that are no layers (target_parameters)"),
    "alora_invocation_tokens": (None, "an adapter that is switched on by tokens"),
    "use_qalora": (False, "QA-LoRA's grouped inputs"),
    "arrow_config": (None, "Arrow's mixture of adapters"),
}
# Keys that are read here, or that change nothing once an adapter is trained.
UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_config", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that change the base weights


@dataclass(frozen=True)
class Update:
    """The update of one layer.

    Attributes:
        a: float32 [i, r].
        b: float32 [r, o].
        scaling: factor of their product.
    """

    a: np.ndarray
    b: np.ndarray
    scaling: float


def export_peft(adapter: str | Path, output: str | Path, base: str | None = None, overwrite: bool = False) -> list[str]:
    """Write a LoRA adapter as PEFT stores them.

    Args:
        adapter: a LoRA directory; it is only read.
        output: the directory to create.
        base: name or directory of the base; None: the adapter names it.
        overwrite: replace ``output`` when it has content.

    Returns:
        Notes for the user.

    Raises:
        CheckpointError: the adapter holds what PEFT's LoRA does not.
        ModelDirectoryError: its base is not there, or of a family without Hugging Face layout.
    """
    source = read_adapter(adapter)
    refuse_inside(output, adapter, base)
    if source.replaced:
        raise CheckpointError(
            f"{adapter} has trained {len(source.replaced)} weights as a whole (first: {source.replaced[0]}); PEFT's "
            "LoRA holds updates only. Merge it (paddlesft merge-lora) and export the model (--format hf)."
        )
    directory = base_of(source.path) if base is None else resolve_model(base)
    check_base(source.path, directory)
    config = load_config(directory)
    layout = family_of(config).hugging_face_layout()
    layout.hugging_face_config(config)  # refuses what transformers' model does not do
    updates = joined(source, _pairs(layout, config.to_dict()))
    rank, alpha = source.config["r"], source.config["lora_alpha"]
    ranks = {name: update.a.shape[1] for name, update in updates.items() if update.a.shape[1] != rank}
    named = source.base.get("name") or ""
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": named if re.fullmatch(r"[\w.-]+/[\w.-]+", named) else None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": source.config.get("lora_dropout") or 0.0,
        "use_rslora": bool(source.config.get("rslora")),
        "rank_pattern": {re.escape(name): value for name, value in ranks.items()},
        "alpha_pattern": {re.escape(name): _alpha(source, value) for name, value in ranks.items()},
        "target_modules": _short(updates, [pair.hf for pair in layout.tensor_pairs(config.to_dict())]),
        "fan_in_fan_out": not any(pair.transposed for pair in layout.tensor_pairs(config.to_dict())),
        "bias": "none",
        "inference_mode": True,
    }
    with new_directory(output, overwrite=overwrite) as scratch:
        from safetensors.numpy import save_file

        tensors = {}
        for name, update in updates.items():
            tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(update.a.T)
            tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(update.b.T)
        save_file(tensors, scratch / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(scratch / CONFIG_FILE, content)
        copy_tokenizer(source.path, scratch)
    notes = []
    if source.provenance.get("base_quantization") or (source.provenance.get("base") or {}).get("formats"):
        notes.append("It was trained over rounded weights; over the floats of its base it computes something else.")
    if content["base_model_name_or_path"] is None:
        notes.append("It names no base, because ours is a directory: give PEFT the base that it was trained on.")
    return notes


def _alpha(source: Adapter, rank: int) -> float:
    """Return the ``lora_alpha`` that gives an update of another rank the adapter's scaling."""
    return source.scaling * (math.sqrt(rank) if source.config.get("rslora") else rank)


def _pairs(layout: Layout, config: Mapping[str, Any]) -> dict[str, list[TensorPair]]:
    """Sort the decoder's pairs of weights by Hugging Face's name of the layer; pieces in their order.

    The head and the embedding are left out: LoRA layers of ours stand in the decoder only.
    """
    found: dict[str, list[TensorPair]] = {}
    for pair in sorted(layout.tensor_pairs(config), key=lambda pair: pair.part or 0):
        if pair.hf.endswith(".weight") and pair.hf not in (HEAD, layout.embedding):
            found.setdefault(pair.hf.removesuffix(".weight"), []).append(pair)
    return found


def joined(adapter: Adapter, layers: Mapping[str, list[TensorPair]]) -> dict[str, Update]:
    """Return the updates of Hugging Face's layers.

    Args:
        adapter: ours.
        layers: the pairs of each of Hugging Face's layers.

    Raises:
        CheckpointError: it has layers that Hugging Face's model does not have.
    """
    left, found = set(adapter.updated), {}
    for name, pairs in layers.items():
        mine = [pair.paddle.removesuffix(".weight") for pair in pairs]
        if not left.intersection(mine):
            continue
        parts = [_update_of(adapter, layer) if layer in left else None for layer in mine]
        left.difference_update(mine)
        found[name] = parts[0] if len(parts) == 1 else _block_diagonal(parts)
    if left:
        raise CheckpointError(
            f"{adapter.path} updates {len(left)} layers that have no counterpart in Hugging Face's model (first: "
            f"{min(left)}). Fused projections (fuse_attention_qkv, fuse_attention_ffn) cannot be written."
        )
    return found


def _update_of(adapter: Adapter, layer: str) -> Update:
    if f"{layer}.lora_AB" in adapter.tensors:
        raise CheckpointError(f"{adapter.path}: {layer} has an update of three matrices; PEFT's have two.")
    a, b = (np.asarray(adapter.tensors[f"{layer}.{part}"].make(), dtype=np.float32) for part in ("lora_A", "lora_B"))
    return Update(a, b, adapter.scaling)


def _block_diagonal(parts: list[Update | None]) -> Update:
    """Put the updates of equally wide pieces of a layer's outputs into one; None: a piece is not updated."""
    there = [part for part in parts if part is not None]
    width, rank = there[0].b.shape[1], sum(part.a.shape[1] for part in there)
    a, b = np.concatenate([part.a for part in there], axis=1), np.zeros([rank, width * len(parts)], dtype=np.float32)
    row = 0
    for number, part in enumerate(parts):
        if part is not None:
            b[row : row + len(part.b), number * width : (number + 1) * width] = part.b
            row += len(part.b)
    return Update(a, b, there[0].scaling)


def _short(updates: Mapping[str, Any], weights: list[str]) -> list[str]:
    """Name layers by their last part where every layer of that name is meant."""
    names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    out = set()
    for name in updates:
        last = name.rsplit(".", 1)[-1]
        out.add(last if all(other in updates for other in names if other.endswith(f".{last}")) else name)
    return sorted(out)


def import_peft(source: str | Path, output: str | Path, base: str | None = None, overwrite: bool = False) -> Path:
    """Make a LoRA directory from a PEFT adapter.

    Args:
        source: the directory that PEFT wrote; it is only read.
        output: the directory to create.
        base: name or directory of the model it was trained on; None: the adapter names it.
        overwrite: replace ``output`` when it has content.

    Returns:
        ``output``.

    Raises:
        ModelDirectoryError: it is no PEFT adapter, its weights are a pickle, or its base is not there.
        CheckpointError: it holds more than low-rank updates, or updates layers that the base does not have.
    """
    source = Path(source)
    refuse_inside(output, source, base)
    config = read_peft_config(source)
    name = base or config.get("base_model_name_or_path")
    if not name:
        raise ModelDirectoryError(
            f"{source / CONFIG_FILE} names no base. Give the model it was trained on: --model_name_or_path DIR."
        )
    directory = resolve_model(name)
    model_config = load_config(directory)
    entries = model_config.to_dict()
    layers = _pairs(family_of(model_config).hugging_face_layout(), entries)
    # Not those of the files: a quantized directory stores codes.
    shapes = expected_shapes({key: value for key, value in entries.items() if key != QUANTIZATION})
    updates = cut(read_peft_updates(source, config), layers, shapes, source)
    rslora, alpha = bool(config.get("use_rslora")), config["lora_alpha"]
    rank = max(update.a.shape[1] for update in updates.values())
    scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
    tensors = {}
    for layer, update in updates.items():
        room = rank - update.a.shape[1]
        b = update.b if update.scaling == scaling else update.b * np.float32(update.scaling / scaling)
        tensors[f"{layer}.lora_A"] = np.ascontiguousarray(np.pad(update.a, ((0, 0), (0, room))))
        tensors[f"{layer}.lora_B"] = np.ascontiguousarray(np.pad(b, ((0, room), (0, 0))))
    linear = [pair.paddle for pairs in layers.values() for pair in pairs]
    with new_directory(output, overwrite=overwrite) as scratch:
        from paddlenlp.peft import LoRAConfig
        from safetensors.numpy import save_file

        save_file(tensors, scratch / "lora_model_state.safetensors")
        targets = [rf".*\.{re.escape(t)}" if "." not in t else re.escape(t) for t in _short(updates, linear)]
        LoRAConfig(
            target_modules=targets, r=rank, lora_alpha=alpha, lora_dropout=config.get("lora_dropout") or 0.0,
            rslora=rslora, base_model_name_or_path=str(name), dtype="float32",
        ).save_pretrained(str(scratch))  # fmt: skip
        if any((source / file).is_file() for file in TOKENIZER_FILES):
            copy_tokenizer(source, scratch)
        facts = {"name": str(source), "format": "peft"}
        # No fingerprint: PEFT does not say which weights it saw, and nothing here can tell.
        base_named = {"name": str(name), "path": str(directory.resolve())}
        write_provenance(
            scratch, kind="adapter", source=facts, base=base_named, dtype="float32", fingerprint=fingerprint(scratch)
        )
    return Path(output)


def read_peft_config(source: Path) -> dict[str, Any]:
    """Read adapter_config.json.

    Raises:
        ModelDirectoryError: it is not there, or of another method than LoRA.
        CheckpointError: the adapter is more than low-rank updates; everything that is, is named.
    """
    if not (source / CONFIG_FILE).is_file():
        there = ", ".join(sorted(path.name for path in source.iterdir())[:6]) if source.is_dir() else "no directory"
        raise ModelDirectoryError(f"{source} is no PEFT adapter: it has no {CONFIG_FILE}. Found: {there or 'nothing'}.")
    config = read_object(source / CONFIG_FILE)
    if config.get("peft_type") != "LORA":
        raise ModelDirectoryError(
            f"{source / CONFIG_FILE}: peft_type is {config.get('peft_type')}; LORA can be imported. Merge the adapter "
            "with PEFT (merge_and_unload), save the model, and use that directory."
        )
    wrong = [text for key, (off, text) in REFUSED.items() if config.get(key) not in (off, None, [], {})]
    begun = str(config.get("init_lora_weights")).lower()
    known = REFUSED.keys() | UNDERSTOOD
    wrong += [
        f"{key}: {json.dumps(value)} (a key that is not known here)"
        for key, value in config.items()
        if key not in known and value not in (None, False, [], {})
    ]
    wrong += [f"{begun}, which has changed the base weights too" for way in CHANGED_BASE if begun.startswith(way)]
    if wrong:
        raise CheckpointError(
            f"{source} holds {'; '.join(wrong)}, which LoRA here does not know. Merge it with PEFT (merge_and_unload), "
            "save the model, and use that directory."
        )
    if not isinstance(config.get("r"), int) or config["r"] < 1 or not isinstance(config.get("lora_alpha"), int | float):
        raise ModelDirectoryError(
            f"{source / CONFIG_FILE}: r is {config.get('r')!r} and lora_alpha {config.get('lora_alpha')!r}; r is a "
            "number above 0. The file is damaged: copy the directory again."
        )
    return config


def read_peft_updates(source: Path, config: Mapping[str, Any]) -> dict[str, Update]:
    """Read the updates of a PEFT adapter, by Hugging Face's names of the layers.

    Raises:
        ModelDirectoryError: there are no weights in safetensors, or they are damaged.
        CheckpointError: there are other weights than low-rank updates of Linear layers.
    """
    path = source / WEIGHTS_FILE
    if not path.is_file():
        pickle = source / "adapter_model.bin"
        advice = (
            "adapter_model.bin is a pickle of torch, which is not read here: load it with PEFT and save it again "
            "(model.save_pretrained(DIR, safe_serialization=True))."
            if pickle.is_file()
            else "Copy the whole directory."
        )
        raise ModelDirectoryError(f"{source} has no {WEIGHTS_FILE}. {advice}")
    tensors = read_floats(path)
    pattern = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
    parts: dict[str, dict[str, np.ndarray]] = {}
    other = []
    for name, array in tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            other.append(name)
        else:
            parts.setdefault(match[1], {})[match[2]] = array
    other += [f"{layer} (half of an update)" for layer, halves in parts.items() if len(halves) != 2]
    if other or not parts:
        first = f"first: {other[0]}" if other else "it is empty"
        raise CheckpointError(f"{path} holds {len(other)} tensors that are no low-rank update of a layer ({first}).")
    out = {}
    for layer, halves in parts.items():
        rank = halves["A"].shape[0]
        alpha = _by_pattern(config.get("alpha_pattern") or {}, layer, config["lora_alpha"])
        scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        out[layer] = Update(halves["A"].T, halves["B"].T, scaling)
    return out


def read_floats(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file as float32, whatever float types it holds.

    Raises:
        ModelDirectoryError: it is damaged.
    """
    return {name: np.asarray(tensor.load(), dtype=np.float32) for name, tensor in read_header(path)[0].items()}


def _by_pattern(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    """Look a layer up as PEFT does: keys are regular expressions for the end of its name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def cut(
    updates: Mapping[str, Update],
    layers: Mapping[str, list[TensorPair]],
    shapes: Mapping[str, tuple[int, ...]],
    source: Path,
) -> dict[str, Update]:
    """Return the updates of Paddle's layers.

    Args:
        updates: by Hugging Face's names.
        layers: the pairs of each of Hugging Face's layers.
        shapes: of the base's weights, [i, o] of a Linear layer.
        source: named in errors.

    Raises:
        CheckpointError: layers are not in the base, or have other sizes there.
    """
    unknown = sorted(name for name in updates if name not in layers)
    if unknown:
        raise CheckpointError(
            f"{source} updates {len(unknown)} layers that can have none here (first: {unknown[0]}): only the Linear "
            "layers of the decoder can. Give the base it was trained on, or merge it with PEFT."
        )
    out, differing = {}, []
    for name, update in updates.items():
        for pair in layers[name]:
            b = update.b if pair.part is None else np.split(update.b, pair.parts, axis=1)[pair.part]
            wanted, found = tuple(shapes.get(pair.paddle, ())), (update.a.shape[0], b.shape[1])
            if wanted != found:
                differing.append(f"{name} is for {list(found)}, the base has {list(wanted)}")
            out[pair.paddle.removesuffix(".weight")] = Update(update.a, b, update.scaling)
    if differing:
        raise CheckpointError(
            f"{source} was not trained on this base: {len(differing)} layers have other sizes ([inputs, outputs]; "
            f"first: {differing[0]}). Give the right one with --model_name_or_path."
        )
    return out
