"""A LoRA adapter directory, read weight by weight: what it changes, by how much, and on which base it was trained."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.errors import CheckpointError, ModelDirectoryError
from paddlesft.models.provenance import read_provenance
from paddlesft.models.stored import read_pdparams
from paddlesft.models.weights import NewTensor, read_header

CONFIG_FILE = "lora_config.json"
WEIGHT_FILES = ("lora_model_state.pdparams", "lora_model_state.safetensors", "peft_model.safetensors")
INDEX_FILE = "peft_model.safetensors.index.json"
PARTS = ("lora_A", "lora_AB", "lora_B")
# Variants whose update is not scaling * A @ B, or which have changed the base weights while training.
REFUSED = {
    "use_mora": "MoRA's square updates",
    "pissa": "PiSSA, which has changed the base weights too",
    "loraga": "LoRA-GA, which has changed the base weights too",
    "do_qat": "quantisation-aware training",
    "enable_lora_list": "merged projections (enable_lora_list)",
}


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        path: its directory.
        config: content of lora_config.json.
        tensors: its weights by the names of the model's state.
        provenance: content of its paddlesft.json; empty when another tool made it.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, NewTensor]
    provenance: dict[str, Any]

    @property
    def scaling(self) -> float:
        """Factor of A @ B: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (https://arxiv.org/abs/2312.03732)."""
        rank, alpha = self.config["r"], self.config["lora_alpha"]
        return alpha / math.sqrt(rank) if self.config.get("rslora") else alpha / rank

    @property
    def base(self) -> dict[str, str]:
        """What the adapter knows about its base: ``name``, ``path``, ``fingerprint``, each only if known."""
        named = self.provenance.get("base") or {}
        fallback = self.config.get("base_model_name_or_path")
        return named or ({"name": fallback} if fallback else {})

    @property
    def updated(self) -> list[str]:
        """Names of the layers that have a low-rank update, sorted."""
        return sorted(name.removesuffix(".lora_A") for name in self.tensors if name.endswith(".lora_A"))

    @property
    def replaced(self) -> list[str]:
        """Names of weights that were trained as a whole (biases, trainable modules), sorted."""
        return sorted(name for name in self.tensors if name.rsplit(".", 1)[-1] not in PARTS)

    def delta_shape(self, layer: str) -> tuple[int, int]:
        """Return the shape [in, out] of a layer's update."""
        return self.tensors[f"{layer}.lora_A"].shape[0], self.tensors[f"{layer}.lora_B"].shape[1]

    def delta(self, layer: str) -> np.ndarray:
        """Compute a layer's update scaling * A @ B in float32, [in, out] as Paddle's Linear weights."""
        parts = [self.tensors[f"{layer}.{part}"] for part in PARTS if f"{layer}.{part}" in self.tensors]
        product = np.asarray(parts[0].make(), dtype=np.float32)
        for part in parts[1:]:
            product = product @ np.asarray(part.make(), dtype=np.float32)
        return product * np.float32(self.scaling)


def read_adapter(path: str | Path) -> Adapter:
    """Read a LoRA adapter directory.

    Args:
        path: holds lora_config.json and lora_model_state.pdparams (or the safetensors forms).

    Raises:
        ModelDirectoryError: it is no LoRA directory, incomplete, or sharded.
        CheckpointError: it is of a variant that cannot be merged.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelDirectoryError(f"lora_path: {path} is not a directory. Give the directory that the training wrote.")
    found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
    if not (path / CONFIG_FILE).is_file():
        if (path / "prefix_config.json").is_file():
            raise ModelDirectoryError(
                f"lora_path: {path} holds a Prefix-Tuning adapter, which cannot be merged into weights. "
                "Use it as it is: paddlesft chat --prefix_path DIR."
            )
        if (path / "adapter_config.json").is_file():
            raise ModelDirectoryError(
                f"lora_path: {path} is an adapter of Hugging Face PEFT (adapter_config.json). Turn it into one that is "
                f"read here: paddlesft import-peft {path} NEW_DIR."
            )
        raise ModelDirectoryError(f"lora_path: {path} is no LoRA directory: it has no {CONFIG_FILE}. Found: {found}.")
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        rank, alpha = config["r"], config["lora_alpha"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelDirectoryError(f"{path / CONFIG_FILE} is damaged ({type(error).__name__}: {error}).") from error
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise ModelDirectoryError(
            f"{path / CONFIG_FILE}: r is {rank!r} and lora_alpha {alpha!r}; r is a number above 0."
        )
    refused = [text for key, text in REFUSED.items() if config.get(key)]
    if refused:
        raise CheckpointError(
            f"{path} cannot be merged: it uses {' and '.join(refused)}. Use it as an adapter instead."
        )
    adapter = Adapter(path, config, _read_tensors(path, found), read_provenance(path))
    _check_complete(adapter)
    return adapter


def _read_tensors(path: Path, found: str) -> dict[str, NewTensor]:
    if (path / INDEX_FILE).is_file():
        index = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    else:
        files = [name for name in WEIGHT_FILES if (path / name).is_file()][:1]
    if not files:
        if any(path.glob("lora_model_state.*.pdparams")):
            raise ModelDirectoryError(
                f"{path} holds the shards of a tensor-parallel adapter ({found}). "
                f"Merge them first: paddlesft merge-shards --model_name_or_path {path} --output_path NEW_DIR."
            )
        raise ModelDirectoryError(f"{path} has a {CONFIG_FILE} but no weights ({WEIGHT_FILES[0]}). Found: {found}.")
    tensors: dict[str, NewTensor] = {}
    for name in files:
        if not (path / name).is_file():
            raise ModelDirectoryError(f"{path} is incomplete: {name}, which {INDEX_FILE} names, is missing.")
        if name.endswith(".pdparams"):
            tensors |= read_pdparams(path / name)
        else:
            stored, _ = read_header(path / name)
            tensors |= {key: NewTensor(t.dtype, t.shape, t.load) for key, t in stored.items()}
    return tensors


def _check_complete(adapter: Adapter) -> None:
    layers = {name.rsplit(".", 1)[0] for name in adapter.tensors if name.rsplit(".", 1)[-1] in PARTS}
    parts = PARTS if adapter.config.get("lora_use_mixer") else ("lora_A", "lora_B")
    missing = sorted(
        f"{layer}.{part}" for layer in layers for part in parts if f"{layer}.{part}" not in adapter.tensors
    )
    if missing:
        raise ModelDirectoryError(
            f"{adapter.path} is incomplete: {len(missing)} LoRA matrices are missing ({', '.join(missing[:3])})."
        )
    rank = adapter.config["r"]
    wrong = [layer for layer in sorted(layers) if adapter.tensors[f"{layer}.lora_A"].shape[1] != rank]
    if wrong:
        raise ModelDirectoryError(
            f"{adapter.path}: {CONFIG_FILE} says r = {rank}, but {wrong[0]}.lora_A has shape "
            f"{list(adapter.tensors[f'{wrong[0]}.lora_A'].shape)}. The files belong to different runs."
        )
    if not adapter.tensors:
        raise ModelDirectoryError(f"{adapter.path} holds no weights at all.")
