"""Running a model step by step with its key/value cache: prompts in, the logits of the next token out.

Shape legend: b batch, s longest prompt, t tokens run so far (padding included), v vocabulary.

Prompts of different length are padded on the left, so that the last position of every row is its newest token. Padding
is masked and positions are counted without it; the rows are then exactly what they are alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from paddle.utils import map_structure

from paddlesft.models.decoders import decoder_of


class EagerRunner:
    """Holds the cache of one batch of replies.

    Args:
        model: a causal language model of paddlenlp, plain or wrapped in ``LoRAModel`` or ``PrefixModelForCausalLM``.
            It is put into evaluation mode by the caller.
        pad_token_id: fills the left of shorter prompts; any valid id, it is masked.
    """

    def __init__(self, model: paddle.nn.Layer, pad_token_id: int = 0) -> None:
        self._decoder = decoder_of(model)
        self._pad_token_id = pad_token_id
        self._cache: Any = None
        self._mask: paddle.Tensor | None = None  # int64 [b, t], 0 = padding
        self._positions: paddle.Tensor | None = None  # of the newest tokens, in the family's own form
        self._padding: list[int] = []  # tokens of padding on the left of each row

    @paddle.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> paddle.Tensor:
        """Run the prompts and fill the cache.

        Args:
            prompts: token ids of each row, none empty.

        Returns:
            Logits [b, v] of each row's first new token.
        """
        longest = max(map(len, prompts))
        self._padding = [longest - len(prompt) for prompt in prompts]
        ids = np.full([len(prompts), longest], self._pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, (prompt, padding) in enumerate(zip(prompts, self._padding)):
            ids[row, padding:] = prompt
            mask[row, padding:] = 1
        input_ids, self._mask = paddle.to_tensor(ids), paddle.to_tensor(mask)
        self._positions = self._decoder.positions(input_ids, self._mask)
        hidden, self._cache = self._decoder.run(input_ids, self._mask, position_ids=self._positions, use_cache=True)
        return self._decoder.logits(hidden[:, -1:])[:, -1]

    @paddle.no_grad()
    def step(self, tokens: np.ndarray) -> paddle.Tensor:
        """Add one token to each row.

        Args:
            tokens: int64 [b], the tokens chosen from the logits returned last.

        Returns:
            Logits [b, v] of the tokens after them.
        """
        self._positions = self._decoder.next_positions(self._positions)
        self._mask = paddle.concat([self._mask, paddle.ones([len(tokens), 1], dtype=self._mask.dtype)], axis=1)
        cache, self._cache = self._cache, None  # the model frees each layer's old cache as soon as the new one is there
        hidden, self._cache = self._decoder.run(
            paddle.to_tensor(np.asarray(tokens, dtype=np.int64)[:, None]),
            self._mask,
            position_ids=self._positions,
            cache=cache,
            use_cache=True,
        )
        return self._decoder.logits(hidden)[:, -1]

    @paddle.no_grad()
    def keep(self, indices: Sequence[int]) -> None:
        """Drop rows that are finished, and the padding that all remaining rows share.

        Args:
            indices: the rows that go on, in their new order; not empty.
        """
        self._padding = [self._padding[i] for i in indices]
        unused = min(self._padding)
        self._padding = [padding - unused for padding in self._padding]
        rows = paddle.to_tensor(np.asarray(indices, dtype=np.int64))
        self._positions = paddle.index_select(self._positions, rows, axis=0)
        self._mask = self._select(self._mask, rows, unused, 0, 1, 0)
        family, prefix = self._decoder.family, self._decoder.prefix_length
        batch_axis, token_axis = family.cache_batch_axis, family.cache_sequence_axis
        # One layer at a time: the whole cache is never there twice.
        cache = list(self._cache)
        self._cache = cache
        for layer in range(len(cache)):
            cache[layer] = map_structure(
                lambda tensor: self._select(tensor, rows, unused, batch_axis, token_axis, prefix), cache[layer]
            )

    @staticmethod
    def _select(
        tensor: paddle.Tensor, rows: paddle.Tensor, unused: int, batch_axis: int, token_axis: int, prefix_length: int
    ) -> paddle.Tensor:
        """Take ``rows`` and leave out the ``unused`` tokens behind the prefix."""
        selected = paddle.index_select(tensor, rows, axis=batch_axis)
        if not unused:
            return selected
        parts = paddle.split(selected, [prefix_length, unused, -1] if prefix_length else [unused, -1], axis=token_axis)
        return paddle.concat([parts[0], parts[2]], axis=token_axis) if prefix_length else parts[1]
