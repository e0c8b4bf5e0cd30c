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
    """Holds the cache of a batch of replies, which may be of different age.

    Args:
        model: what computes.
    """

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._cache = KeyValueCache(model.cache_shape, getattr(model, "cache_on_device", False))
        self.rows: list[Row] = []

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Run the prompts and fill the cache.

        Args:
            prompts: token ids of each row, none empty.

        Returns:
            Logits [b, v] of each row's first new token.
        """
        self.begin([Row(prompt) for prompt in prompts])
        while (logits := self.advance()) is None:
            pass
        return logits

    def begin(self, rows: Sequence[Row], known: Sequence[Sequence[Any]] | None = None) -> None:
        """Forget what was there and take rows whose prompts ``advance`` runs.

        Args:
            rows: with ``prompt`` and ``adapter``; the rest is set here.
            known: for each row the keys and values of the first tokens of its prompt, fewer than all, in parts
                [2 L, n, w, d], one behind the other; see ``keys_and_values``.
        """
        self.rows = list(rows)
        self._cache.open(len(self.rows))
        for index, row in enumerate(self.rows):
            prefix = self._model.prefixes.get(row.adapter)
            parts = [*([] if prefix is None else [prefix]), *(known[index] if known else ())]
            filled = sum(part.shape[2] for part in parts)
            row.prefix_length = 0 if prefix is None else prefix.shape[2]
            row.length = filled - row.prefix_length
            self._cache.reserve(len(self.rows), max(filled, self._cache.columns))
            for part in parts:
                self._cache.fill(index, row.columns - filled, part)
                filled -= part.shape[2]

    def advance(self, most: int | None = None) -> Any:
        """Run the next piece of the prompts.

        Args:
            most: tokens of a row in this piece; None: as many as memory allows. Models that need whole prompts run them
                whole.

        Returns:
            Logits [b, v] of each row's first new token when the prompts have ended, None before.
        """
        left = max(len(row.prompt) - row.length for row in self.rows)
        size = left
        if not self._model.inputs.whole_prompts:
            size = min(self._piece(len(self.rows), left), most or left)
        logits = self._run([self._part(row, size) for row in self.rows])
        return logits if size >= left else None

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
            indices: the rows that go on, in their new order.
        """
        self.rows = [self.rows[i] for i in indices]
        self._cache.keep(indices)
        self._cache.shrink(max((row.columns for row in self.rows), default=0) + 1)

    def join(self, other: CachedRunner) -> None:
        """Take the rows of another runner of the same model, behind those that are here; the other one has ended."""
        self.rows += other.rows
        self._cache.join(other._cache, max(row.columns for row in self.rows) + 1)

    def limit(self, most: int | None) -> None:
        """Let the cache have at most ``most`` rows times columns, unless more of them are filled."""
        self._cache.most = most
        self._cache.shrink(max((row.columns for row in self.rows), default=0) + 1)

    @property
    def size(self) -> int:
        """Rows times columns that the cache has memory for."""
        return self._cache.capacity * self._cache.columns

    def keys_and_values(self, row: int, first: int, end: int) -> Any:
        """Return a copy of what the cache holds of a row's tokens ``first`` to ``end``, [2 L, n, end - first, d]."""
        width = self.rows[row].prefix_length
        return self._cache.read(row, width + first, width + end)

    def _piece(self, rows: int, left: int) -> int:
        """Return how many tokens of each prompt run in one call."""
        heads = family_of(self._model.config).num_heads(self._model.config)
        seen = max(row.columns for row in self.rows) + left
        return min(left, max(SHORTEST_PIECE, SCORES_BYTES // (4 * rows * heads * seen)))

    @staticmethod
    def _part(row: Row, size: int) -> Sequence[int]:
        """Return the tokens of a prompt's piece. A row that has ended runs its last token again, for its logits."""
        row.length = min(row.length, len(row.prompt) - 1)
        return row.prompt[row.length : row.length + size]

    def _run(self, tokens: Sequence[Sequence[int]]) -> Any:
        rows, cache = self.rows, self._cache
        starts, counts = [row.columns for row in rows], [len(new) for new in tokens]
        logits, new = self._model(self._model.inputs(rows, tokens, cache.columns), cache)
        cache.reserve(len(rows), max(start + count for start, count in zip(starts, counts)))
        cache.write(starts, counts, new)
        for row, count in zip(rows, counts):
            row.length += count
        return logits
