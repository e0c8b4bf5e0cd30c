"""What was computed of texts is found again by every text that begins alike, and forgotten in order of disuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.inference.prefix_cache import PrefixCache


def reader(tokens: Sequence[int], asked: list[tuple[int, int]] | None = None) -> Callable[[int, int], np.ndarray]:
    """Keys and values [2, 1, w, 1] that show which token they belong to, and what came before it."""

    def read(first: int, end: int) -> np.ndarray:
        if asked is not None:
            asked.append((first, end))
        sums = np.cumsum([token * 7 + 1 for token in tokens])[first:end]
        return np.stack([sums, -sums]).astype(np.float64)[:, None, :, None]

    return read


def known(cache: PrefixCache, tokens: Sequence[int], adapter: str | None = None) -> int:
    """Return how many tokens are known; their content must be right."""
    parts = cache.find(adapter, tokens)
    if not parts:
        return 0
    found = np.concatenate(parts, axis=2)
    assert np.array_equal(found, reader(tokens)(0, found.shape[2]))
    return found.shape[2]


def test_a_text_finds_the_longest_beginning_that_was_kept() -> None:
    draw = np.random.default_rng(0)
    cache, kept = PrefixCache(10_000), []
    for _ in range(300):
        text = draw.integers(0, 3, draw.integers(1, 12)).tolist()
        longest = max(
            (next((i for i, (a, b) in enumerate(zip(one, text)) if a != b), min(len(one), len(text))) for one in kept),
            default=0,
        )
        assert known(cache, text) == longest
        asked: list[tuple[int, int]] = []
        cache.add(None, text, reader(text, asked))
        assert asked == ([(longest, len(text))] if longest < len(text) else [])  # nothing is read or kept twice
        kept.append(text)
    beginnings = {tuple(text[:length]) for text in kept for length in range(1, len(text) + 1)}
    assert cache.tokens == len(beginnings)
    assert all(known(cache, text) == len(text) for text in kept)
    assert known(cache, kept[0], adapter="other") == 0
    cache.clear()
    assert cache.tokens == known(cache, kept[0]) == 0


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache, system = PrefixCache(15), [1, 2, 3, 4]
    for user in (5, 6, 7):
        text = [*system, user, user]
        cache.add(None, text, reader(text))
    assert cache.tokens == 4 + 3 * 2
    assert known(cache, [*system, 5, 5]) == 6  # used again
    text = [*system, 8, 8, 8]
    cache.add("adapter", text, reader(text))
    assert cache.tokens == 15  # of the others, the sixes and no more had to go
    assert [known(cache, [*system, user, user]) for user in (5, 6, 7)] == [6, 4, 6]
    assert known(cache, text, "adapter") == 7


@pytest.mark.parametrize("limit", [0, 5])
def test_no_more_is_kept_than_may_be(limit: int) -> None:
    cache, draw = PrefixCache(limit), np.random.default_rng(1)
    for _ in range(100):
        text = draw.integers(0, 4, 9).tolist()
        cache.add(None, text, reader(text))
        assert cache.tokens <= limit and known(cache, text) == limit


def test_a_part_that_is_left_of_a_text_does_not_hold_the_memory_of_the_whole() -> None:
    for whole in (np.zeros([2, 1, 1000, 1]), paddle.zeros([2, 1, 1000, 1])):
        cache = PrefixCache(1000)
        cache.add(None, list(range(1000)), lambda first, end, whole=whole: whole[:, :, first:end])
        cache.add(None, [0, 1, 7], lambda first, end, whole=whole: whole[:, :, first:end])
        parts: list[Any] = cache.find(None, [0, 1])
        assert [part.shape[2] for part in parts] == [2]
        assert not isinstance(parts[0], np.ndarray) or parts[0].base is None
