"""GGUF files -> model directories. What differs between architectures is in ``gguf_architectures.py``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.directories import new_directory, write_json
from paddlesft.errors import ModelDirectoryError
from paddlesft.models.gguf_architectures import HEAD, Architecture, Place, architecture_of
from paddlesft.models.gguf_file import AGAIN, INSTEAD, GGUFFile
from paddlesft.models.gguf_tokenizer import write_tokenizer
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.shapes import check_shapes
from paddlesft.models.weights import DTYPE, PADDLE_LAYOUT, NewTensor, write_weights

logger = logging.getLogger("paddlesft")

IMPORT_VERSION = 1  # raise when the same file would give another directory: cached imports are then made again
EMBEDDING = "token_embd.weight"
OUTPUT = f"{HEAD}.weight"
FLOAT_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Rounding a matrix twice, to two quantisations, leaves them this close; unrelated matrices are 1.4 apart.
SAME_MATRIX = 0.3


def import_gguf(src: str | Path, dst: str | Path, overwrite: bool = False, dtype: str | None = None) -> Path:
    """Turn a GGUF file into a model directory, complete or not at all.

    Args:
        src: a ``.gguf`` file of one of ``ARCHITECTURES``.
        dst: the directory to create.
        overwrite: replace ``dst`` when it has content.
        dtype: float32, bfloat16 or float16; None keeps a 16-bit file's own and takes float32 for quantised ones.

    Returns:
        ``dst``.

    Raises:
        ModelDirectoryError: the file is damaged, of another architecture, or holds something that cannot be kept.
        UserError: ``dst`` has content and ``overwrite`` is false.
    """
    with new_directory(dst, overwrite=overwrite) as scratch:
        write_gguf_model(src, scratch, dtype=dtype)
    return Path(dst)


def write_gguf_model(
    src: str | Path, directory: Path, source_name: str | None = None, dtype: str | None = None
) -> None:
    """Fill an empty directory with the model of a GGUF file (see ``import_gguf``).

    Args:
        src: the file.
        directory: an empty scratch directory.
        source_name: what the provenance calls the source; the file's path when None.
        dtype: as for ``import_gguf``.
    """
    gguf = GGUFFile(src)
    architecture = architecture_of(gguf)
    dtype = dtype or matrix_dtype(gguf)
    config = model_config(gguf, architecture, dtype)
    tensors = paddle_tensors(gguf, architecture, config, DTYPE[dtype])
    check_shapes(tensors, config, str(gguf.path), "its metadata say")
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", token_ids(gguf, config))
    write_tokenizer(gguf, directory, max_length=config.get(architecture.family.context_key))
    write_weights(directory, dict(sorted(tensors.items())), PADDLE_LAYOUT)
    stored = sorted({gguf.stored_type(name) for name in gguf.tensors})
    write_provenance(
        directory,
        kind="model",
        source={
            "name": source_name or str(gguf.path.resolve()),
            "format": "gguf",
            "title": gguf.fields.get("general.name"),
            "license": gguf.fields.get("general.license"),
            "stored_types": stored,
        },
        dtype=dtype,
        fingerprint=fingerprint(directory),
    )
    logger.info("imported %s: %d tensors (%s) as %s", gguf.path, len(tensors), ", ".join(stored), dtype)


def matrix_dtype(gguf: GGUFFile) -> str:
    """Return the type in which a file's matrices lose nothing: its own 16-bit type, else float32."""
    types = {gguf.stored_type(name) for name, tensor in gguf.tensors.items() if len(tensor.shape) == 2}
    return FLOAT_TYPES.get(types.pop(), "float32") if len(types) == 1 else "float32"


def model_config(gguf: GGUFFile, architecture: Architecture, dtype: str = "float32") -> dict[str, Any]:
    """Make config.json's content from a file's metadata; nothing is assumed that the file says.

    Raises:
        ModelDirectoryError: a missing key, or a feature that the family's model here does not have.
    """
    sizes = architecture.config(gguf)
    tokens = gguf.fields.get("tokenizer.ggml.tokens")
    rows = gguf.shape(EMBEDDING)[0] if EMBEDDING in gguf.tensors else 0
    if not tokens or len(tokens) != rows:
        raise ModelDirectoryError(
            f"{gguf.path}: the vocabulary has {len(tokens or [])} tokens, the embedding {rows} rows; they "
            f"must agree. {AGAIN}"
        )
    family = architecture.family
    bos, eos = (gguf.fields.get(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos"))
    return {
        "architectures": [family.causal_lm],
        "model_type": family.model_types[0],
        "vocab_size": len(tokens),
        **sizes,
        "tie_word_embeddings": architecture.tied or OUTPUT not in gguf.tensors,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": gguf.fields.get("tokenizer.ggml.padding_token_id", eos),
        "dtype": dtype,
    }


def token_ids(gguf: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    """Return generation_config.json's content: a reply ends with the end of text or, in a chat, of the turn."""
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config[key] is not None}
    turn = gguf.fields.get("tokenizer.ggml.eot_token_id")
    if turn is not None and turn != config["eos_token_id"]:
        ids["eos_token_id"] = [id for id in (config["eos_token_id"], turn) if id is not None]
    return ids


def paddle_tensors(
    gguf: GGUFFile, architecture: Architecture, config: dict[str, Any], code: str
) -> dict[str, NewTensor]:
    """Name every weight as PaddleNLP does; arrays are made when they are asked for.

    Args:
        gguf: the file.
        architecture: its row.
        config: content of config.json.
        code: safetensors' name of the type to write.

    Raises:
        ModelDirectoryError: the file holds a tensor that has no place in the model, or lacks one.
    """
    places = architecture.places(config[architecture.family.num_layers_key])
    unknown = [name for name in gguf.tensors if name not in places and name not in architecture.ignored]
    missing = [name for name in places if name not in gguf.tensors and name != OUTPUT]
    for names, verb, belonging, advice in (
        (unknown, "holds", f"that the {architecture.name} architecture does not have here", INSTEAD),
        (missing, "lacks", f"of the {architecture.name} architecture", AGAIN),
    ):
        if names:
            rest = ", ..." if len(names) > 3 else ""
            raise ModelDirectoryError(
                f"{gguf.path} {verb} {len(names)} tensors {belonging}: {', '.join(names[:3])}{rest}. {advice}"
            )
    if architecture.tied:
        del places[OUTPUT]
    tensors = {}
    for name, place in places.items():
        if name in gguf.tensors:
            source = shared_matrix(gguf, architecture) if name == EMBEDDING else name
            tensors |= placed_tensors(gguf, source, place, code)
    return tensors


def shared_matrix(gguf: GGUFFile, architecture: Architecture) -> str:
    """Return which tensor is the embedding: some converters store the output matrix of tied models a second time.

    Raises:
        ModelDirectoryError: the model is tied, and the file has an output matrix of its own.
    """
    if not architecture.tied or OUTPUT not in gguf.tensors:
        return EMBEDDING
    embedding, output = gguf.array(EMBEDDING), gguf.array(OUTPUT)
    if np.array_equal(embedding, output):
        return EMBEDDING
    quantised = {gguf.stored_type(name) for name in (EMBEDDING, OUTPUT)} - set(FLOAT_TYPES)
    if not quantised or np.linalg.norm(embedding - output) > SAME_MATRIX * np.linalg.norm(output):
        raise ModelDirectoryError(
            f"{gguf.path}: {OUTPUT} differs from {EMBEDDING}; the {architecture.name} model here has one matrix "
            f"for both. {INSTEAD}"
        )
    logger.warning(
        "%s stores the embedding twice, as %s and as %s; the finer one of the output is taken for both.",
        gguf.path, gguf.stored_type(EMBEDDING), gguf.stored_type(OUTPUT),
    )  # fmt: skip
    return OUTPUT


def placed_tensors(gguf: GGUFFile, source: str, place: Place, code: str) -> dict[str, NewTensor]:
    """Share a tensor's rows out to its targets, in Paddle's orientation."""
    shape = gguf.shape(source)
    transposed = place.transposed and len(shape) == 2
    part = (shape[0] // len(place.targets), *shape[1:])

    def make(index: int) -> np.ndarray:
        rows = gguf.array(source)
        if place.undo:
            rows = place.undo(rows, gguf)
        rows = rows[index * part[0] : (index + 1) * part[0]]
        return rows.T if transposed else rows

    return {
        target: NewTensor(code, part[::-1] if transposed else part, lambda index=index: make(index))
        for index, target in enumerate(place.targets)
    }
