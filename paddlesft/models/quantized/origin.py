"""What a directory with quantized weights stands for: its formats, and the float model that it was made from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import read_config
from paddlesft.models.provenance import read_provenance
from paddlesft.models.quantized.directory import LayerRecord, read_records
from paddlesft.models.quantized.formats import WeightFormat


def records_in(directory: str | Path) -> dict[str, LayerRecord]:
    """Return the quantized layers of a model directory by name; none where its weights are floats.

    Raises:
        ModelDirectoryError: it is no model directory, or was quantized by another tool.
    """
    return read_records(read_config(directory), str(Path(directory) / "config.json"))


def in_words(how: WeightFormat) -> str:
    """Say a format in words: ``nf4 in groups of 64 with double quantization``."""
    groups = f" in groups of {how.group_size}" if how.group_size else ""
    return f"{how.name}{groups}{' with double quantization' if how.double_quantization else ''}"


def formats_of(records: Mapping[str, LayerRecord]) -> str:
    """Say the formats of layers in words, each once, the most frequent first."""
    names = [f"{in_words(one.how)}{' with activations of 8 bits' if one.activations else ''}" for one in records.values()]
    return ", ".join(sorted(set(names), key=names.count, reverse=True))


def float_base(directory: str | Path) -> dict[str, Any]:
    """Return ``{"name", "path", "fingerprint"}`` of the float model that a quantized directory was made from.

    Returns:
        What the directory knows about it; empty where it knows nothing.
    """
    return read_provenance(directory).get("base") or {}


def refuse_quantized(directory: str | Path, use: str) -> None:
    """Refuse a directory with quantized weights where only floats can be used.

    Args:
        directory: a model directory.
        use: what they are needed for, as the end of a sentence.

    Raises:
        ModelDirectoryError: its weights are quantized.
    """
    records = records_in(directory)
    if not records:
        return
    base = float_base(directory)
    named = base.get("path") or base.get("name")
    advice = f"Give the float model that it was made from{f' ({named})' if named else ''}"
    if not any(record.activations for record in records.values()):
        advice += (
            ", or write the float weights that it stands for into a directory of their own: paddlesft dequantize "
            f"{shlex.quote(str(directory))} NEW_DIR"
        )
    raise ModelDirectoryError(
        f"{directory} holds weights in {formats_of(records)}; float weights are needed {use}. {advice}."
    )
