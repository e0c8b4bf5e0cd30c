"""Packs hold every row exactly once, never more than fits, and best fit wastes less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlesft.data.packing import pack_best_fit, pack_in_order

lengths = st.lists(st.integers(1, 64), max_size=60)


@given(lengths)
def test_every_row_is_in_exactly_one_pack_that_holds_it(rows: list[int]) -> None:
    for pack in (pack_in_order, pack_best_fit):
        packs = pack(rows, 64)
        assert sorted(index for members in packs for index in members) == list(range(len(rows)))
        assert all(sum(rows[index] for index in members) <= 64 for members in packs)


@given(lengths)
def test_the_order_is_kept_unless_best_fit_is_asked_for(rows: list[int]) -> None:
    in_order = pack_in_order(rows, 64)
    assert [index for members in in_order for index in members] == list(range(len(rows)))
    # first-fit-decreasing type bounds: no two packs of best fit could have been one
    fills = sorted(sum(rows[index] for index in members) for members in pack_best_fit(rows, 64))
    assert len(fills) < 2 or fills[0] + fills[1] > 64


def test_known_packs() -> None:
    assert pack_in_order([5, 4, 6, 5], 10) == [[0, 1], [2], [3]]
    assert pack_best_fit([5, 4, 6, 5], 10) == [[0, 3], [1, 2]]
    assert pack_in_order([], 10) == pack_best_fit([], 10) == []


def test_a_row_longer_than_a_pack_is_never_dropped_silently() -> None:
    for pack in (pack_in_order, pack_best_fit):
        with pytest.raises(ValueError, match="row 1 has 11 positions, more than a pack of 10"):
            pack([3, 11], 10)
