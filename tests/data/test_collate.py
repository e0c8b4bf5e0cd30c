"""Batches: widths, labels, masks, segments."""

from __future__ import annotations

import numpy as np
import pytest

from paddlesft.data.collate import Collator

SHORT, LONG = {"input_ids": [5, 6], "labels": [-100, 7]}, {"input_ids": [1, 2, 3], "labels": [-100, 3, 4]}
PACK = {"input_ids": [1, 2, 3, 5, 6], "labels": [-100, 3, 4, -100, 7], "position_ids": [0, 1, 2, 0, 1],
        "segment_lengths": [3, 2]}  # fmt: skip


def test_rows_are_padded_on_the_right() -> None:
    batch = Collator(pad_token_id=9)([SHORT, LONG])
    assert batch["input_ids"].tolist() == [[5, 6, 9], [1, 2, 3]]
    assert batch["labels"].tolist() == [[-100, 7, -100], [-100, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert all(array.dtype == np.int64 for array in batch.values())
    assert set(batch) == {"input_ids", "labels", "attention_mask"}


def test_widths() -> None:
    assert Collator(0, pad_to_multiple_of=4)([LONG])["input_ids"].shape == (1, 4)
    assert Collator(0, pad_to_multiple_of=3)([LONG])["input_ids"].shape == (1, 3)
    assert Collator(0, pad_to_max_length=6)([SHORT])["attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="a row has 3 positions, more than pad_to_max_length=2"):
        Collator(0, pad_to_max_length=2)([LONG])


def test_packed_rows_have_segments_and_positions_that_restart() -> None:
    batch = Collator(0)([PACK, {**SHORT, "segment_lengths": [2]}])
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert "attention_mask" not in batch
