"""Running a model step by step: prompts in, the logits of the next token out. Rows are padded on the right.

The cache is allocated in whole steps and written in place; nothing that an earlier token computed is copied for a later
one. Long prompts run in pieces, so that attention's scores stay small. The model is in memory or a static graph, see
``step_model.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.inference.step_model import StepModel
from paddlesft.models.families import family_of
from paddlesft.models.steps.inputs import Row

SCORES_BYTES = 64 << 20  # of one layer, [b, h, s, m + s] in float32; a piece of a prompt is as long as this allows
SHORTEST_PIECE = 32  # tokens


class CachedRunner:
    """Holds the cache of one batch of replies.

    Args:
        model: what computes.
    """

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._cache = KeyValueCache(model.cache_shape, model.prefix, getattr(model, "cache_on_device", False))
        self._rows: list[Row] = []

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Run the prompts and fill the cache.

        Args:
            prompts: token ids of each row, none empty.

        Returns:
            Logits [b, v] of each row's first new token.
        """
        self._rows = [Row(prompt) for prompt in prompts]
        self._cache.open(len(prompts))
        longest = max(map(len, prompts))
        size = longest if self._model.inputs.whole_prompts else self._piece(len(prompts), longest)
        for start in range(0, longest, size):
            logits = self._run([self._part(row, start, start + size) for row in self._rows])
        return logits

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

    def _piece(self, rows: int, longest: int) -> int:
        """Return how many tokens of each prompt run in one call."""
        heads = family_of(self._model.config).num_heads(self._model.config)
        seen = self._cache.width + longest
        return min(longest, max(SHORTEST_PIECE, SCORES_BYTES // (4 * rows * heads * seen)))

    @staticmethod
    def _part(row: Row, start: int, end: int) -> Sequence[int]:
        """Return the tokens of a prompt's piece. A row that has ended runs its last token again, for its logits."""
        if start < len(row.prompt):
            return row.prompt[start:end]
        row.length = len(row.prompt) - 1
        return row.prompt[-1:]

    def _run(self, tokens: Sequence[Sequence[int]]) -> Any:
        rows, cache = self._rows, self._cache
        starts, counts = [row.length for row in rows], [len(new) for new in tokens]
        logits, new = self._model(self._model.inputs(rows, tokens, cache.columns), cache)
        cache.reserve(len(rows), cache.width + max(start + count for start, count in zip(starts, counts)))
        cache.write(starts, counts, new)
        for row, count in zip(rows, counts):
            row.length += count
        return logits
