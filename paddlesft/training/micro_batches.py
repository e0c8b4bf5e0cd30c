"""Rows into the micro-batches of a step, and rows and batches that run without training anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paddlesft.training.loss import IGNORED


class MicroBatches:
    """Collates the rows of one optimizer step into its micro-batches.

    Args:
        collator: rows -> arrays of one batch.
        micro_batch_size: rows of a micro-batch.
        stand_in: any row; it goes through the model without being trained where the last step of an epoch has no rows
            left for this rank.
    """

    def __init__(
        self,
        collator: Callable[[Sequence[Any]], Mapping[str, Any]],
        micro_batch_size: int,
        stand_in: Mapping[str, Any],
    ) -> None:
        self.collator = collator
        self.size = micro_batch_size
        self.stand_in = untrained_row(stand_in)

    def __call__(self, rows: Sequence[Any]) -> list[Mapping[str, Any]]:
        rows = rows or [self.stand_in]
        return [self.collator(rows[i : i + self.size]) for i in range(0, len(rows), self.size)]


def untrained_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that trains nothing. (A made-up one would not do: some models read marks in the token ids.)"""
    return {**row, "labels": [IGNORED] * len(row["labels"])}


def untrained(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a collated batch that goes through the model as the given one does and trains nothing."""
    return {**batch, "labels": np.full_like(np.asarray(batch["labels"]), IGNORED)}


def number_of_tokens(batch: Mapping[str, Any]) -> int:
    """Return how many tokens of a collated batch are not padding."""
    for key in ("segment_ids", "attention_mask"):
        if key in batch:
            return int((np.asarray(batch[key]) != 0).sum())
    return int(np.asarray(batch["input_ids"]).size)
