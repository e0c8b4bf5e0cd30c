"""Hugging Face directories -> Paddle layout, beside the source and never inside it.

The two layouts hold the same numbers under other names, with Linear weights transposed. What a family's directories
look like is in ``hf_layouts``; what is not covered there is refused by name instead of being dropped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paddlesft.directories import new_directory
from paddlesft.errors import ModelDirectoryError
from paddlesft.models.cache import cached_directory
from paddlesft.models.directory import TOKENIZER_FILES, copy_tokenizer, read_config
from paddlesft.models.families import family_of
from paddlesft.models.hf_layouts.layout import HEAD, IGNORED_ENDINGS, Layout
from paddlesft.models.hf_layouts.tensor_pairs import paddle_tensor
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.shapes import check_shapes
from paddlesft.models.weights import PADDLE_LAYOUT, NewTensor, StoredTensor, read_weights, weight_files, write_weights

logger = logging.getLogger("paddlesft")

CONVERSION_VERSION = 2  # raise when the same source would give another directory


def converted(directory: str | Path) -> Path:
    """Return a Hugging Face directory in Paddle's layout, from the user's cache; converted there on first use.

    Args:
        directory: holds config.json and safetensors of torch layout; it is only read.

    Raises:
        ModelDirectoryError: the model is of a family that cannot be converted, incomplete or quantised, or its weights
            have other sizes than its config says.
    """
    directory = Path(directory).resolve()
    name = directory.name
    if directory.parent.name == "snapshots":  # Hugging Face's cache: models--org--name/snapshots/COMMIT
        name = directory.parent.parent.name.removeprefix("models--").replace("--", "-")
    key = f"converted/{name}-{source_key(directory)}-v{CONVERSION_VERSION}"
    return cached_directory(key, lambda scratch: write_paddle_model(directory, scratch))


def convert_hugging_face(src: str | Path, dst: str | Path, overwrite: bool = False) -> Path:
    """Convert a Hugging Face directory into a directory of your own choice, complete or not at all.

    Args:
        src: the source; it is only read.
        dst: the directory to create, not inside ``src``.
        overwrite: replace ``dst`` when it has content.

    Returns:
        ``dst``.

    Raises:
        ModelDirectoryError: as ``converted``, or ``dst`` lies inside ``src``.
    """
    source, target = Path(src).resolve(), Path(dst).resolve()
    if target == source or source in target.parents:
        raise ModelDirectoryError(
            f"{dst} lies inside the source {src}, which is never written to. Choose another place."
        )
    with new_directory(dst, overwrite=overwrite) as scratch:
        write_paddle_model(source, scratch)
    return Path(dst)


def source_key(directory: Path) -> str:
    """Name the content of a source: what is copied by content, the large weight files by size and time of change."""
    digest = hashlib.sha256()
    copied = {path for path in (directory / name for name in TOKENIZER_FILES) if path.is_file()}
    for path in sorted(copied | set(directory.glob("*.json"))):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    for path in weight_files(directory):
        facts = path.stat()
        digest.update(f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:12]


def write_paddle_model(src: Path, directory: Path) -> None:
    """Fill an empty directory with the Paddle-layout copy of a Hugging Face directory (see ``converted``).

    Every tensor keeps its dtype; one tensor is in memory at a time.
    """
    config = read_config(src)
    layout = family_of(config, where=str(src / "config.json")).hugging_face_layout()
    stored, _ = read_weights(src)
    paddle_config = convert_config(layout, config, stored, src)
    tensors = paddle_tensors(layout, paddle_config, stored, src)
    check_shapes(tensors, paddle_config, str(src), "its config.json says")
    (directory / "config.json").write_text(json.dumps(paddle_config, indent=2) + "\n", encoding="utf-8")
    if (src / "generation_config.json").is_file():
        shutil.copyfile(src / "generation_config.json", directory / "generation_config.json")
    copy_tokenizer(src, directory)
    write_weights(directory, tensors, PADDLE_LAYOUT)
    write_provenance(
        directory,
        kind="model",
        source={"name": str(src), "format": "hugging_face"},
        dtype=paddle_config["dtype"],
        fingerprint=fingerprint(directory),
    )
    logger.info("converted %s: %d tensors (%s)", src, len(tensors), paddle_config["dtype"])


def convert_config(
    layout: Layout, config: dict[str, Any], stored: dict[str, StoredTensor], src: Path
) -> dict[str, Any]:
    """Translate config.json: what paddlenlp would ignore is translated or refused, never lost.

    Args:
        layout: the family's.
        config: content of the source's config.json.
        stored: the source's tensors; their type is the model's when the config does not say.
        src: named in errors.
    """
    where = src / "config.json"
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelDirectoryError(
            f"{where}: the weights are quantised ({method}); only float weights can be converted. "
            "Use the model's original directory."
        )
    dtype = config.get("torch_dtype") or config.get("dtype")
    if dtype is None:
        codes = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        dtype = codes.get(next(iter(stored.values())).dtype, "float32")
    return layout.paddle_config(config, where) | {"dtype": str(dtype).removeprefix("torch.")}


def paddle_tensors(
    layout: Layout, config: dict[str, Any], stored: dict[str, StoredTensor], src: Path
) -> dict[str, NewTensor]:
    """Name and orient the tensors of a Hugging Face directory as Paddle does.

    Args:
        layout: the family's.
        config: content of the Paddle config.json.
        stored: the source's tensors.
        src: named in errors.

    Raises:
        ModelDirectoryError: tensors are missing, or are there that the model has no place for.
    """
    pairs = layout.tensor_pairs(config)
    known = {pair.hf for pair in pairs}
    prefix = layout.optional_prefix
    if not any(name.startswith(prefix) for name in stored):  # saved from the decoder alone, as early checkpoints are
        stored = {name if name == HEAD else prefix + name: tensor for name, tensor in stored.items()}
    tied = {HEAD} if layout.tied(config) else set()
    extra = (name for name in stored if name not in known | tied and not name.endswith(IGNORED_ENDINGS))
    advice = "Is its config.json that of another model?"
    _refuse(src, "holds", f"have no place in a {layout.family} model here", extra, advice)
    advice = "Download or copy the model again."
    _refuse(src, "lacks", f"belong to a {layout.family} model here", known - set(stored), advice)
    lazy = {name: NewTensor(tensor.dtype, tensor.shape, tensor.load) for name, tensor in stored.items()}
    out = {pair.paddle: paddle_tensor(pair, lazy[pair.hf]) for pair in pairs}
    copy = layout.tied_head(config) if layout.tied(config) else None
    if copy:
        out[copy] = lazy[layout.embedding]
    return out


def _refuse(src: Path, verb: str, what: str, names: Iterable[str], advice: str) -> None:
    names = sorted(names)
    if names:
        rest = ", ..." if len(names) > 3 else ""
        raise ModelDirectoryError(
            f"{src} {verb} {len(names)} tensors that {what}: {', '.join(names[:3])}{rest}. {advice}"
        )
