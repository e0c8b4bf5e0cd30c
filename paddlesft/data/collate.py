"""Rows to a batch of arrays. b: rows in the batch, s: positions, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

IGNORED = -100  # label of a position that is not trained


class Collator:
    """Pads rows to one width.

    Args:
        pad_token_id: fills ``input_ids`` behind a row's end.
        pad_to_multiple_of: round the width up to a multiple of this.
        pad_to_max_length: pad to exactly this width instead of the longest row's.
    """

    def __init__(
        self, pad_token_id: int, pad_to_multiple_of: int | None = None, pad_to_max_length: int | None = None
    ) -> None:
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of or 1
        self.pad_to_max_length = pad_to_max_length

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        """Make a batch.

        Args:
            rows: dicts with ``input_ids`` and ``labels`` of one length; packed ones have ``segment_lengths`` too.

        Returns:
            ``input_ids`` and ``labels``, int64 [b, s]; ``labels[i]`` is the target of position i, -100 where there is
            none. Not packed: ``attention_mask`` int64 [b, s], 1 on real positions. Packed: ``segment_ids`` int64
            [b, s], 1..n for the rows of a pack and 0 on padding (positions attend only within their id, backwards),
            and ``position_ids`` int64 [b, s], which restart with every segment.

        Raises:
            ValueError: a row is longer than ``pad_to_max_length``.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        width = self.pad_to_max_length or -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        if longest > width:
            raise ValueError(f"a row has {longest} positions, more than pad_to_max_length={width}")
        shape = (len(rows), width)
        batch = {
            "input_ids": np.full(shape, self.pad_token_id, dtype=np.int64),
            "labels": np.full(shape, IGNORED, dtype=np.int64),
        }
        packed = any("segment_lengths" in row for row in rows)
        for key in ("segment_ids", "position_ids") if packed else ("attention_mask",):
            batch[key] = np.zeros(shape, dtype=np.int64)
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][number, :length] = row["input_ids"]
            batch["labels"][number, :length] = row["labels"]
            if not packed:
                batch["attention_mask"][number, :length] = 1
                continue
            start = 0
            for segment, size in enumerate(row.get("segment_lengths", [length]), 1):
                batch["segment_ids"][number, start : start + size] = segment
                batch["position_ids"][number, start : start + size] = np.arange(size)
                start += size
        return batch
