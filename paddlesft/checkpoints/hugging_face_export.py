"""A model, with its adapter merged into it and its chat template, as a directory for transformers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from paddlesft.checkpoints.adapter import read_adapter
from paddlesft.checkpoints.merge_base import find_base
from paddlesft.checkpoints.merge_lora import MergeReport, merge_lora
from paddlesft.data.transformers_template import template_for_transformers
from paddlesft.directories import refuse_inside, refuse_taken
from paddlesft.errors import CheckpointError
from paddlesft.models.hf_export import write_hugging_face
from paddlesft.models.load import paddle_directory
from paddlesft.models.provenance import read_provenance
from paddlesft.models.quantized.on_load import format_of_base
from paddlesft.models.quantized.origin import records_in
from paddlesft.models.resolve import resolve_model


@dataclass(frozen=True)
class HuggingFaceExport:
    """What was written.

    Attributes:
        output: the new directory.
        merged: how an adapter was merged on the way; None: there was none.
        notes: what the user should know.
    """

    output: Path
    merged: MergeReport | None
    notes: list[str]


def export_hugging_face(
    model: str | Path | None,
    output: str | Path,
    adapter: str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> HuggingFaceExport:
    """Write a model for transformers, complete or not at all.

    Args:
        model: directory, hub name or ``embedded:smollm2``; None: the base that the adapter names.
        output: the directory to create.
        adapter: a LoRA directory, whose updates are added to the weights on the way, with the proof of ``merge_lora``.
        dtype: float32, bfloat16 or float16; None: as the model is stored.
        overwrite: replace ``output`` when it has content.

    Raises:
        ModelDirectoryError: the model cannot be written in this layout, or is quantized.
        CheckpointError: the adapter does not fit, or was trained over quantized weights.
        UserError: ``output`` has content and ``overwrite`` is false.
    """
    target = Path(output)
    refuse_taken(target, overwrite)
    refuse_inside(target, model, adapter)
    if adapter is None:
        return _write(resolve_model(model), target, dtype, overwrite)
    _refuse_quantized_base(adapter, model)
    there = next(path for path in target.absolute().parents if path.is_dir())
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=there) as scratch:  # where a model has room
        merged = merge_lora(model, adapter, Path(scratch) / "model", dtype=dtype)
        return _write(merged.output, target, None, overwrite, merged)


def _write(
    model: Path, output: Path, dtype: str | None, overwrite: bool, merged: MergeReport | None = None
) -> HuggingFaceExport:
    directory = paddle_directory(model)
    template, notes = template_for_transformers(directory)
    told = read_provenance(directory)
    # The scratch directory is gone afterwards: what it was made of is what counts.
    facts = (
        {key: told[key] for key in ("source", "base", "adapter_fingerprint", "merge") if key in told} if merged else {}
    )
    write_hugging_face(directory, output, overwrite, dtype, template, **facts)
    return HuggingFaceExport(output, merged, [*(merged.notices if merged else []), *notes])


def _refuse_quantized_base(adapter: str | Path, model: str | Path | None) -> None:
    found = read_adapter(adapter)
    base = paddle_directory(find_base(found, model))
    if records_in(base) or format_of_base(found.provenance) or found.base.get("formats"):
        raise CheckpointError(
            f"{adapter} was trained over quantized weights, or {base} holds such. transformers gets floats; say which "
            f"ones by merging first, then export the merged model:\n"
            f"  paddlesft merge-lora --lora_path {adapter} --merge_model_path MERGED --base_precision dequantized\n"
            "  paddlesft export --format hf --model_name_or_path MERGED --output_path OUT\n"
            "(--base_precision full takes the weights before they were rounded.)"
        )
