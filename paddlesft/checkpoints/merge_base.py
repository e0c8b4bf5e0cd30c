"""Which base an adapter is merged into: where its training saw quantized weights, the user has to choose.

Training over a quantized base makes the adapter fit the rounded weights. Merged into what those stand for
(``dequantized``), it computes what training saw. Merged into the weights before rounding (``full``), it computes
something else, usually as good or better, but never the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from paddlesft.checkpoints.adapter import Adapter
from paddlesft.errors import CheckpointError, ModelDirectoryError
from paddlesft.models.load import load_model, paddle_directory, state_to_store
from paddlesft.models.provenance import fingerprint
from paddlesft.models.quantized.dequantized import dequantized_weights
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
from paddlesft.models.stored import stored_weights
from paddlesft.models.weights import NewTensor

Precision = Literal["dequantized", "full"]


@dataclass(frozen=True)
class MergeBase:
    """The base of a merge.

    Attributes:
        directory: whose weights the adapter is added to.
        how: format that they are rounded to first; None: none, or that of the directory itself.
        check: "matches", "unknown" (the adapter names no fingerprint) or "forced" (they differ).
        fingerprint: of the directory.
        precision: what was chosen; None where training saw no quantized weights.
        trained_on: directory and format that training computed with, where the merge takes others; None where it takes
            the same.
        formats: of the quantized weights, in words.
    """

    directory: Path
    how: WeightFormat | None
    check: str
    fingerprint: str
    precision: Precision | None = None
    trained_on: tuple[Path, WeightFormat | None] | None = None
    formats: str = ""

    def weights(self) -> dict[str, NewTensor]:
        """List the float weights that the adapter is added to."""
        if self.precision != "dequantized":
            return stored_weights(self.directory)
        model = load_model(self.directory, dtype="float32", quantize=self.how)
        return dequantized_weights(model, state_to_store(model), self.directory)


def choose_base(
    adapter: Adapter, given: str | Path | None, precision: Precision | None, force: bool, notices: list[str]
) -> MergeBase:
    """Find the base of an adapter, check that it is the one, and settle which of its weights are meant.

    Args:
        adapter: the adapter.
        given: the base that the user names; None: the one that the adapter names.
        precision: ``dequantized`` or ``full``, where the adapter was trained over quantized weights.
        force: go on when fingerprints differ.
        notices: receives what the user should know.

    Raises:
        CheckpointError: there is no base, it is a wrong one, or ``precision`` is missing or makes no sense.
        ModelDirectoryError: a directory cannot be used.
    """
    path = paddle_directory(find_base(adapter, given))
    how, records = format_of_base(adapter.provenance), records_in(path)
    if how is not None:
        refuse_quantized(path, f"under an adapter whose training rounded them to {in_words(how)} while it loaded them")
        check = check_base(adapter, path, force, notices)
        _refuse_unsettled(adapter, precision, in_words(how), path, path)
        if precision == "full":
            return MergeBase(path, None, *check, precision, (path, how), in_words(how))
        return MergeBase(path, how, *check, precision, None, in_words(how))
    if records:
        _refuse_other_quantized(adapter, path, force)
        check = check_base(adapter, path, force, notices)
        rounds = any(record.activations for record in records.values())
        _refuse_unsettled(adapter, precision, formats_of(records), path, None, rounds)
        trained = MergeBase(path, None, *check, precision, None, formats_of(records))
        return trained if precision == "dequantized" else _before_rounding(trained, float_model_of(path))
    trained_on = quantized_directory_of(adapter.base, path)
    if trained_on is not None:
        formats = formats_of(records_in(trained_on))
        _refuse_unsettled(adapter, precision, formats, trained_on, path)
        if precision == "dequantized":
            raise CheckpointError(
                f"base_precision: dequantized takes the weights of {trained_on}, on which the adapter was trained, "
                f"but --model_name_or_path names {path}. Leave one of the two out."
            )
        trained = MergeBase(trained_on, None, "matches", fingerprint(trained_on), precision, None, formats)
        return _before_rounding(trained, float_model_of(trained_on, path))
    if precision == "dequantized" and "formats" not in adapter.base:
        raise CheckpointError(
            f"base_precision: dequantized was given, but neither {path} nor the base of {adapter.path} is quantized. "
            "Leave it out."
        )
    formats = adapter.base.get("formats", "")
    if formats and not (force and precision == "full"):
        raise CheckpointError(
            f"The adapter {adapter.path} was trained on {adapter.base['name']} with weights in {formats}, which is not "
            f"there as it was; {path} has floats. Give that quantized directory with --model_name_or_path. "
            "--base_precision full with --force merges into these floats, though nothing shows that they are those "
            "before they were rounded."
        )
    return MergeBase(path, None, *check_base(adapter, path, force, notices), precision, formats=formats)


def find_base(adapter: Adapter, base: str | Path | None) -> Path:
    """Return the base's directory: the one given, else the one that the adapter names.

    Raises:
        CheckpointError: neither is there.
        ModelDirectoryError: the one given is not there.
    """
    if base is not None:
        return resolve_model(base)
    if not adapter.base:
        raise CheckpointError(
            f"{adapter.path} does not say which base model it was trained on. Give it with --model_name_or_path."
        )
    recorded = adapter.base.get("path")
    if recorded and Path(recorded).is_dir():
        return Path(recorded)
    try:
        return resolve_model(adapter.base["name"])
    except ModelDirectoryError as error:
        raise CheckpointError(
            f"The base of {adapter.path} cannot be found: {error} Give it with --model_name_or_path."
        ) from error


def check_base(adapter: Adapter, base: Path, force: bool, notices: list[str]) -> tuple[str, str]:
    """Compare the base's fingerprint with the one that the adapter was trained on.

    Args:
        adapter: the adapter.
        base: the base's directory.
        force: go on when they differ.
        notices: receives what the user should know.

    Returns:
        ("matches" | "unknown" | "forced", the base's fingerprint).

    Raises:
        CheckpointError: they differ and ``force`` is false.
    """
    found, wanted = fingerprint(base), adapter.base.get("fingerprint")
    if wanted is None:
        notices.append(
            f"{adapter.path} has no fingerprint of its base (another tool made it): only names and shapes were checked."
        )
        return "unknown", found
    if found == wanted:
        return "matches", found
    if not force:
        raise CheckpointError(
            f"Wrong base: the adapter {adapter.path} was trained on {adapter.base.get('name', 'another model')} with "
            f"fingerprint {wanted[:19]}..., but {base} has {found[:19]}.... "
            "Give the right base with --model_name_or_path, or --force to merge all the same (this is recorded)."
        )
    notices.append(f"Forced: the adapter was trained on {wanted[:19]}..., the base is {found[:19]}....")
    return "forced", found


def _refuse_unsettled(
    adapter: Adapter,
    precision: Precision | None,
    formats: str,
    trained: Path,
    floats: Path | None,
    rounds: bool = False,
) -> None:
    """Ask for the choice where there is one; ``floats`` is the float model when it is known already."""
    if precision is not None:
        return
    named = floats or float_base(trained).get("path")
    dequantized = (
        "--base_precision dequantized: impossible here, since the base rounds activations too, which no float weights "
        "stand for."
        if rounds
        else "--base_precision dequantized: the weights that those stand for. The result computes what training saw; "
        "what rounding lost stays lost."
    )
    raise CheckpointError(
        f"The adapter {adapter.path} was trained on a base with weights in {formats}; a merged model has floats. Say "
        "which ones, because they compute different things:\n"
        f"  {dequantized}\n"
        f"  --base_precision full: the weights before they were rounded{f' ({named})' if named else ''}. The result "
        "differs from what training saw; the report says by how much."
    )


def _refuse_other_quantized(adapter: Adapter, path: Path, force: bool) -> None:
    """Refuse a quantized directory under an adapter that was trained on the float model that it was made from."""
    wanted = adapter.base.get("fingerprint")
    if wanted and not force and wanted == float_base(path).get("fingerprint"):
        named = adapter.base.get("path") or adapter.base.get("name")
        raise CheckpointError(
            f"{path} is quantized, but the adapter {adapter.path} was trained on the float model that it was made "
            f"from: {named}. Merge into that (leave --model_name_or_path out) and quantize the merged model: "
            "paddlesft quantize CONFIG --model_name_or_path MERGED."
        )


def _before_rounding(trained: MergeBase, floats: Path) -> MergeBase:
    return replace(
        trained,
        directory=floats,
        fingerprint=fingerprint(floats),
        trained_on=(trained.directory, None),
        precision="full",
    )
