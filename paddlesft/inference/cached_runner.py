"""Running a model step by step: prompts in, the logits of the next token out. Rows are padded on the right.

The cache is allocated in whole steps and written in place; nothing that an earlier token computed is copied for a later
one. The model may be in memory or a static graph, see ``step_model.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.inference.step_model import StepModel
from paddlesft.models.steps.inputs import Row


class CachedRunner:
    """Holds the cache of one batch of replies.

    Args:
        model: what computes.
    """

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._cache = KeyValueCache(model.cache_shape, model.prefix)
        self._rows: list[Row] = []

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Run the prompts and fill the cache.

        Args:
            prompts: token ids of each row, none empty.

        Returns:
            Logits [b, v] of each row's first new token.
        """
        self._rows = [Row(prompt) for prompt in prompts]
        return self._run(prompts)

    def step(self, tokens: np.ndarray) -> Any:
        """Add one token to each row.

        Args:
            tokens: int64 [b], the tokens chosen from the logits returned last.

        Returns:
            Logits [b, v] of the tokens after them.
        """
        return self._run([[token] for token in tokens.tolist()])

    def keep(self, indices: Sequence[int]) -> None:
        """Drop rows that are finished.

        Args:
            indices: the rows that go on, in their new order; not empty.
        """
        self._rows = [self._rows[i] for i in indices]
        self._cache.keep(indices)

    def _run(self, tokens: Sequence[Sequence[int]]) -> Any:
        rows, cache = self._rows, self._cache
        starts, counts = [row.length for row in rows], [len(new) for new in tokens]
        cache.reserve(len(rows), cache.width + max(start + count for start, count in zip(starts, counts)))
        logits, new = self._model(self._model.inputs(rows, tokens, cache.columns), cache)
        cache.write(starts, counts, np.from_dlpack(new) if not isinstance(new, np.ndarray) else new)
        for row, count in zip(rows, counts):
            row.length += count
        return logits
