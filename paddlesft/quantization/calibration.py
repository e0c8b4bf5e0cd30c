"""The rows that a model is calibrated on: rendered as training renders them, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from paddlesft.data.collate import Collator
from paddlesft.data.dataset import build_dataset
from paddlesft.errors import DataError

if TYPE_CHECKING:
    from paddlesft.config import RunConfig
    from paddlesft.data.rendering import Renderer

FEW_TOKENS = 2048  # fewer than this in all say little about a layer's inputs
SHORT_ROW = 16  # tokens; mostly the marks of a template


def calibration_batches(
    run_config: RunConfig, renderer: Renderer, batches: int, warn: Callable[[str], None]
) -> tuple[list[Mapping[str, Any]], str]:
    """Read the rows of ``quant.json``, or else of the training data, and collate them.

    Args:
        run_config: where the data is; ``per_device_train_batch_size`` rows make a batch.
        renderer: of the model's own template.
        batches: how many are wanted.
        warn: told what the user should look at.

    Returns:
        The batches, and the fingerprint of their rows.

    Raises:
        DataError: there is no row.
    """
    dataset, report = build_dataset(run_config.data, renderer, "quant", run_config.training.seed)
    size = run_config.training.per_device_train_batch_size
    if not len(dataset):
        raise DataError(f"No row of {', '.join(map(str, report.files))} can be used for calibration.")
    rows = [dataset[i] for i in range(min(len(dataset), size * batches))]
    lengths = [len(row["input_ids"]) for row in rows]
    if len(rows) < size * batches:
        warn(
            f"calibration: {len(rows)} rows for {batches} batches of {size}: they make {-(-len(rows) // size)}. More "
            "rows make scales more reliable."
        )
    if sum(lengths) < FEW_TOKENS:
        warn(
            f"calibration: {sum(lengths)} tokens in all, which is little to learn ranges from. Give more or longer "
            "rows (128 rows of your own task are usual)."
        )
    short = sum(length < SHORT_ROW for length in lengths)
    if short > len(rows) // 2:
        warn(
            f"calibration: {short} of {len(rows)} rows are shorter than {SHORT_ROW} tokens: they show the model little "
            "but the marks of its template."
        )
    collator = Collator(renderer.pad_token_id)
    return [collator(rows[i : i + size]) for i in range(0, len(rows), size)], report.fingerprint
