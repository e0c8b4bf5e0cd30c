"""Which weights an adapter runs on: those that its training computed with, unless the user asks for others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import read_object
from paddlesft.models.provenance import fingerprint, read_provenance
from paddlesft.models.quantized.directory import LayerRecord
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.on_load import format_of_base
from paddlesft.models.quantized.origin import (
    float_base,
    float_model_of,
    formats_of,
    in_words,
    quantized_directory_of,
    records_in,
    refuse_quantized,
)
from paddlesft.models.resolve import resolve_model

logger = logging.getLogger("paddlesft")

ADAPTER_CONFIGS = {"lora": "lora_config.json", "prefix": "prefix_config.json"}
Precision = Literal["quantized", "full"]


@dataclass(frozen=True)
class BaseWeights:
    """The weights of a base.

    Attributes:
        directory: the base's.
        how: format that its weights are rounded to while they are loaded; None leaves them as they are stored.
        formats: of the weights that are computed with, in words; empty for floats.
        said: a line for the user, empty where there is nothing to say.
    """

    directory: Path
    how: WeightFormat | None = None
    formats: str = ""
    said: str = ""


def settle_base(adapter: Path | None, directory: Path, precision: Precision | None) -> BaseWeights:
    """Find the weights that an adapter, or nothing, runs on.

    Args:
        adapter: its directory; None: the model is used as it is.
        directory: of the model that was named, by the user or by the adapter.
        precision: ``quantized`` or None: as the adapter's training had them; ``full``: those before they were rounded.

    Raises:
        ModelDirectoryError: it is another model than the adapter was trained on, or there are no such weights.
    """
    records = records_in(directory)
    if adapter is None:
        if precision == "full" and records:
            named = float_base(directory).get("path")
            raise ModelDirectoryError(
                f"base_precision: full was given, but {directory} holds weights in {formats_of(records)} only. Name "
                f"the float model instead{f': --model_name_or_path {named}' if named else ''}."
            )
        _refuse_floats(directory, precision, bool(records))
        return _as_stored(directory, records)
    how = format_of_base(read_provenance(adapter))
    if how is not None:
        refuse_quantized(directory, f"under {adapter}, whose training rounded them to {in_words(how)} while loading")
        check_base(adapter, directory)
        formats = in_words(how)
        if precision == "full":
            return BaseWeights(directory, said=f"weights in full precision; the adapter's training had {formats}")
        return BaseWeights(directory, how, formats, f"weights rounded to {formats} while loading, as in training")
    given = directory
    trained_on = None if records else quantized_directory_of(read_provenance(adapter).get("base") or {}, given)
    if trained_on is not None:  # floats under an adapter whose training had a quantized directory
        directory, records = trained_on, records_in(trained_on)
        if precision != "full":
            raise ModelDirectoryError(
                f"{adapter} was trained on {directory} with weights in {formats_of(records)}; {given} has floats. "
                "Leave --model_name_or_path out to compute as in training, or add --base_precision full to use the "
                "floats, which compute something else."
            )
    check_base(adapter, directory)
    if precision == "full" and records:
        floats = float_model_of(directory, None if given == directory else given)
        return BaseWeights(floats, said=f"weights in full precision; the adapter's training had {formats_of(records)}")
    _refuse_floats(directory, precision, bool(records))
    return _as_stored(directory, records)


def _as_stored(directory: Path, records: Mapping[str, LayerRecord]) -> BaseWeights:
    formats = formats_of(records)
    return BaseWeights(directory, None, formats, f"weights in {formats}" if records else "")


def _refuse_floats(directory: Path, precision: Precision | None, quantized: bool) -> None:
    if precision == "quantized" and not quantized:
        raise ModelDirectoryError(
            f"base_precision: quantized was given, but {directory} holds float weights and no adapter says that they "
            "are rounded. Leave it out, or quantize the model first: paddlesft quantize CONFIG."
        )


def base_of(adapter: Path) -> Path:
    """Return the directory of the model that an adapter was trained on, as the adapter itself names it.

    Raises:
        ModelDirectoryError: it names none, or the named one is not there.
    """
    base = read_provenance(adapter).get("base") or {}
    names = [str(base[key]) for key in ("path", "name") if base.get(key)]
    for config in ADAPTER_CONFIGS.values():
        if (adapter / config).is_file() and not names:
            named = read_object(adapter / config).get("base_model_name_or_path")
            names = [named] if named else []
    if not names:
        raise ModelDirectoryError(
            f"{adapter} does not say which model it was trained on. Name it with --model_name_or_path."
        )
    for name in names:
        try:
            return resolve_model(name)
        except ModelDirectoryError as error:
            reason = error
    raise ModelDirectoryError(
        f"{adapter} was trained on {' / '.join(dict.fromkeys(names))}, which cannot be found ({reason}). "
        "Name the model's directory with --model_name_or_path."
    )


def check_base(adapter: Path, directory: Path) -> None:
    """Refuse a base that is not the model the adapter was trained on; an adapter without that fact gets a warning."""
    base = read_provenance(adapter).get("base") or {}
    wanted = base.get("fingerprint")
    if not wanted:
        logger.warning("%s does not say which weights it was trained on; %s is taken unchecked.", adapter, directory)
        return
    found = fingerprint(directory)
    if found != wanted and float_base(directory).get("fingerprint") == wanted and records_in(directory):
        raise ModelDirectoryError(
            f"{directory} is quantized, but {adapter} was trained on the float model that it was made from. Leave "
            "--model_name_or_path out to use that, or merge the adapter into it (paddlesft merge-lora) and quantize "
            "the merged model."
        )
    if found != wanted:
        formats = f"{base['formats']}, " if base.get("formats") else ""
        raise ModelDirectoryError(
            f"{directory} is not the model that {adapter} was trained on.\n"
            f"  trained on: {base.get('name') or base.get('path') or 'a model'} with weights {formats}{wanted}\n"
            f"  given:      weights {found}\n"
            "Give the model named first, or leave --model_name_or_path out to use it."
        )
