"""What a directory with quantized weights stands for: its formats, and the float model that it was made from."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import read_config
from paddlesft.models.provenance import base_facts, fingerprint, read_provenance
from paddlesft.models.quantized.directory import LayerRecord, read_records
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.on_load import BASE_ENTRY
from paddlesft.models.resolve import resolve_model

logger = logging.getLogger("paddlesft")


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
    rounded = " with activations of 8 bits"
    names = [f"{in_words(one.how)}{rounded if one.activations else ''}" for one in records.values()]
    return ", ".join(sorted(set(names), key=names.count, reverse=True))


def facts_of_base(directory: str | Path, name: str | None = None) -> dict[str, str]:
    """Describe an adapter's base: ``base_facts``, and ``formats`` in words where it is quantized."""
    records = records_in(directory)
    return base_facts(directory, name) | ({"formats": formats_of(records)} if records else {})


def float_base(directory: str | Path) -> dict[str, Any]:
    """Return ``{"name", "path", "fingerprint"}`` of the float model that a quantized directory was made from.

    Returns:
        What the directory knows about it; empty where it knows nothing.
    """
    return read_provenance(directory).get("base") or {}


def float_model_of(quantized: Path, given: Path | None = None) -> Path:
    """Return the directory of the float model that a quantized directory was made from.

    Args:
        quantized: the quantized directory.
        given: the float model, where the user names it; None: the one that the quantized directory names.

    Raises:
        ModelDirectoryError: it is not there, or it is another model.
    """
    base = float_base(quantized)
    floats = given
    for name in filter(None, (base.get("path"), base.get("name"))):
        if floats is None:
            with contextlib.suppress(ModelDirectoryError):
                floats = resolve_model(name)
    if floats is None:
        named = base.get("path") or base.get("name")
        what = f"{named}, from which {quantized} was made, is not there" if named else f"{quantized} does not name it"
        raise ModelDirectoryError(
            f"base_precision: full needs the float model, but {what}. Give it with --model_name_or_path DIR."
        )
    refuse_quantized(floats, "as the base in full precision")
    wanted, found = base.get("fingerprint"), fingerprint(floats)
    if not wanted:
        logger.warning("%s does not say which weights it was made from; %s is taken unchecked.", quantized, floats)
    elif found != wanted:
        raise ModelDirectoryError(
            f"{floats} is not the model that {quantized} was made from.\n"
            f"  made from: weights {wanted}\n"
            f"  given:     weights {found}\n"
            "Give the float model that was quantized."
        )
    return floats


def quantized_directory_of(base: Mapping[str, Any], given: Path) -> Path | None:
    """Return the quantized directory that an adapter was trained on, where the user gives floats instead.

    Args:
        base: the ``base`` entry of the adapter's ``paddlesft.json``.
        given: the model that the user gives.

    Returns:
        The directory; None where the adapter names none, or it is not there any more.
    """
    recorded = Path(base["path"]) if base.get("path") else None
    if recorded is None or not (recorded / "config.json").is_file() or recorded.resolve() == given.resolve():
        return None
    return recorded if records_in(recorded) and fingerprint(recorded) == base.get("fingerprint") else None


def merge_command(adapter: str | Path, merged: str) -> str:
    """Return the command line that merges a LoRA adapter, with the choice that one over quantized weights needs.

    Args:
        adapter: its directory.
        merged: the directory for the result.
    """
    line = f"paddlesft merge-lora --lora_path {shlex.quote(str(adapter))} --merge_model_path {shlex.quote(merged)}"
    provenance = read_provenance(adapter)
    base = (provenance.get("base") or {}).get("path")
    quantized = BASE_ENTRY in provenance
    if not quantized and base and (Path(base) / "config.json").is_file():
        with contextlib.suppress(ModelDirectoryError):  # merging will say what is wrong with it
            quantized = bool(records_in(base))
    return f"{line} --base_precision dequantized" if quantized else line


def refuse_rounding_again(directory: str | Path, how: WeightFormat) -> None:
    """Refuse to quantize a directory with quantized weights while it is loaded.

    Args:
        directory: a model directory.
        how: the format that its layers would get.

    Raises:
        ModelDirectoryError: its weights are quantized.
    """
    if records_in(directory):
        raise ModelDirectoryError(
            f"{directory} is quantized already; it cannot be quantized to {how.name} while it is loaded. Leave "
            "weight_quantize_algo out to use it as it is, or give the float model."
        )


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
