"""Length-grouped order: complete, repeatable, and it saves padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paddlesft.data.grouping import length_grouped_indices, padded_positions


@given(st.lists(st.integers(1, 200), max_size=300), st.integers(1, 8), st.integers(0, 5))
def test_each_row_once_and_the_longest_first(rows: list[int], batch: int, seed: int) -> None:
    order = length_grouped_indices(rows, batch, seed)
    assert sorted(order) == list(range(len(rows)))
    assert order == length_grouped_indices(rows, batch, seed)
    if len(rows) >= batch:
        full = [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]
        assert max(rows[i] for i in full[0]) == max(rows[i] for members in full for i in members)


def test_it_saves_padding_and_depends_on_the_seed() -> None:
    rows = np.random.default_rng(0).integers(10, 500, 1000).tolist()
    order = length_grouped_indices(rows, 8, seed=1)
    shuffled = np.random.default_rng(1).permutation(1000).tolist()
    assert padded_positions(rows, order, 8) < 1.1 * sum(rows) < 1.4 * sum(rows) < padded_positions(rows, shuffled, 8)
    assert order != length_grouped_indices(rows, 8, seed=2)
    assert padded_positions([3, 5], [0, 1], 2, multiple_of=8) == 16
