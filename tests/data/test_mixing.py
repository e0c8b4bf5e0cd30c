"""Orders of rows of several sources."""

from __future__ import annotations

from collections import Counter

from paddlesft.data.mixing import mixed_order


def test_concat_takes_each_row_once_in_order() -> None:
    assert mixed_order([2, 1], "concat", [0.1, 0.9]) == [(0, 0), (0, 1), (1, 0)]
    assert mixed_order([2], "random") == [(0, 0), (0, 1)]


def test_interleaving_in_turn() -> None:
    assert mixed_order([3, 2], "interleave_under") == [(0, 0), (1, 0), (0, 1), (1, 1)]
    over = mixed_order([4, 2], "interleave_over")
    assert [row for source, row in over if source == 0] == [0, 1, 2, 3]
    assert [row for source, row in over if source == 1] == [0, 1, 0, 1]


def test_interleaving_by_share() -> None:
    over = Counter(source for source, _ in mixed_order([300, 100], "interleave_over", [0.5, 0.5], seed=3))
    assert over[0] >= 300 and 0.8 < over[0] / over[1] < 1.25
    under = Counter(source for source, _ in mixed_order([1000, 1000], "interleave_under", [0.8, 0.2], seed=3))
    assert under[0] == 1000 and 3 < under[0] / under[1] < 5


def test_random_draws_by_share_and_repeats_with_the_seed() -> None:
    order = mixed_order([500, 500], "random", [0.9, 0.1], seed=1)
    assert len(order) == 1000 and 820 < Counter(source for source, _ in order)[0] < 960
    assert (
        order == mixed_order([500, 500], "random", [0.9, 0.1], seed=1) != mixed_order([500, 500], "random", [0.9, 0.1])
    )
    by_size = Counter(source for source, _ in mixed_order([900, 100], "random", seed=1))
    assert 840 < by_size[0] < 960
