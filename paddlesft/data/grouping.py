"""Batches of rows of similar length: less padding, still shuffled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def length_grouped_indices(
    lengths: Sequence[int], batch_size: int, seed: int, batches_per_group: int = 50
) -> list[int]:
    """Return an order of rows in which consecutive batches hold rows of similar length.

    Rows are shuffled, cut into groups of many batches, sorted by length inside each group, and the groups' batches are
    shuffled again. The batch with the longest row comes first, so that a lack of memory shows at once.

    Args:
        lengths: length of each row.
        batch_size: rows in a batch.
        seed: the same seed gives the same order.
        batches_per_group: more means less padding and less randomness.

    Returns:
        Every index of ``lengths`` exactly once.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(lengths))
    group = batch_size * batches_per_group
    batches: list[list[int]] = []
    for start in range(0, len(order), group):
        rows = sorted(order[start : start + group].tolist(), key=lambda i: -lengths[i])
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    full = [batch for batch in batches if len(batch) == batch_size]
    rest = [batch for batch in batches if len(batch) < batch_size]
    full = [full[i] for i in draw.permutation(len(full))]
    if full:
        longest = max(range(len(full)), key=lambda i: max(lengths[row] for row in full[i]))
        full[0], full[longest] = full[longest], full[0]
    # a batch that is not full stays last, or every batch behind it would be cut askew
    return [row for batch in [*full, *rest] for row in batch]


def padded_positions(lengths: Sequence[int], order: Sequence[int], batch_size: int, multiple_of: int = 1) -> int:
    """Return how many positions batches of these rows take with padding.

    Args:
        lengths: length of each row.
        order: indices in the order they are batched.
        batch_size: rows in a batch.
        multiple_of: each batch's width is rounded up to a multiple of this.
    """
    total = 0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(lengths[row] for row in rows)
        total += len(rows) * (-(-width // multiple_of) * multiple_of)
    return total
