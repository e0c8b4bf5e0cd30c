"""Rows of several sources to one order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mixed_order(
    lengths: Sequence[int], strategy: str, probabilities: Sequence[float] | None = None, seed: int = 42
) -> list[tuple[int, int]]:
    """Return (source, row) pairs in the order they are used.

    Args:
        lengths: rows of each source.
        strategy: "concat" one source after the other, each once (shares play no part); "interleave_under" in turn, or
            by share, until the first source is used up; "interleave_over" until the last is, smaller ones repeating;
            "random" as many draws as there are rows, by share (by size when no shares are given), with replacement.
        probabilities: the sources' shares.
        seed: of the draws.
    """
    if strategy == "concat" or len(lengths) == 1:
        return [(source, row) for source, length in enumerate(lengths) for row in range(length)]
    if strategy == "random":
        shares = np.asarray(probabilities if probabilities is not None else np.asarray(lengths) / sum(lengths))
        draw = np.random.default_rng(seed)
        sources = draw.choice(len(lengths), size=sum(lengths), p=shares / shares.sum())
        return [(int(source), int(draw.integers(lengths[source]))) for source in sources]
    import datasets

    tables = [
        datasets.Dataset.from_dict({"source": [source] * length, "row": list(range(length))})
        for source, length in enumerate(lengths)
    ]
    stopping = "first_exhausted" if strategy == "interleave_under" else "all_exhausted"
    shares = None if probabilities is None else list(probabilities)
    mixed = datasets.interleave_datasets(tables, probabilities=shares, seed=seed, stopping_strategy=stopping)
    return list(zip(mixed["source"], mixed["row"]))
