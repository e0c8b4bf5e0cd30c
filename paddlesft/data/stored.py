"""Rendered rows on disk: written while the data is streamed, mapped into memory, used again by later runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft import __version__
from paddlesft.data.rendering import Rendered, Renderer
from paddlesft.data.sources import DataSource

LAYOUT = 2  # raised when the files below, or what rendering means, change
ARRAYS = {"ids": np.int32, "trained": np.bool_, "offsets": np.int64}
# keys of the configuration that decide which rows there are and how they are cut
DECIDING_KEYS = ("column_map", "mix_strategy", "src_length", "max_length", "truncation", "max_train_samples")
PROBE = "The quick brown fox, 12345 times.\n\n  def f(x): return x\n你好，世界。🙂 <|im_end|></s>"


def rows_key(data_config: Any, renderer: Renderer, sources: list[DataSource], format: str, seed: int) -> str:
    """Return a name for the rendered rows: equal only if files, settings, template and tokenizer are.

    Args:
        data_config: a ``DataConfig``.
        renderer: template and tokenizer.
        sources: the files, whose content is read for this.
        format: declared format, or "auto".
        seed: of the mixing.
    """
    tokenizer = renderer.tokenizer
    told = {
        "layout": [LAYOUT, __version__],
        "files": [[str(file), _content_hash(file)] for source in sources for file in source.files],
        "shares": [source.probability for source in sources],
        "settings": {key: getattr(data_config, key) for key in DECIDING_KEYS},
        "format": format,
        "seed": seed,
        "system_prompt": renderer.system_prompt,
        "one_reply_per_row": renderer.one_reply_per_row,
        "template": renderer.template.fingerprint,
        "tokenizer": [type(tokenizer).__name__, len(tokenizer), renderer.encoder.added_ids],
        "probe": renderer.encoder.encode(PROBE),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _content_hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(stream)


def _slow(stream: Any) -> str:
    """``hashlib.file_digest`` for Python 3.10."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_rows(directory: Path, rows: Iterable[Rendered]) -> None:
    """Write rows as flat arrays, holding one row at a time.

    Args:
        directory: an existing directory.
        rows: as rendered and truncated.
    """
    total = 0
    with (
        open(directory / "ids.bin", "wb") as ids,
        open(directory / "trained.bin", "wb") as trained,
        open(directory / "offsets.bin", "wb") as offsets,
    ):
        offsets.write(np.zeros(1, np.int64).tobytes())
        for row in rows:
            ids.write(np.asarray(row.input_ids, np.int32).tobytes())
            trained.write(np.asarray(row.trained, np.bool_).tobytes())
            total += len(row.input_ids)
            offsets.write(np.asarray([total], np.int64).tobytes())


def map_rows(directory: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids, trained flags and offsets of rows written by ``write_rows``, mapped from disk.

    Args:
        directory: where they were written.
    """
    ids, trained, offsets = (np.memmap(directory / f"{name}.bin", dtype, "r") for name, dtype in ARRAYS.items())
    return ids, trained, offsets
