"""Running a model step by step with its key/value cache: prompts in, the logits of the next token out.

Shape legend: b batch, s longest prompt, t tokens in the cache (prefix and padding included), v vocabulary.

Prompts of different length are padded on the left, so that the last position of every row is its newest token. Padding
is masked and positions are counted without it; the rows are then exactly what they are alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import paddle

from paddlesft.models.families import family_of


class EagerRunner:
    """Holds the cache of one batch of replies.

    Args:
        model: a causal language model of paddlenlp, plain or wrapped in ``LoRAModel`` or ``PrefixModelForCausalLM``.
            It is put into evaluation mode by the caller.
        pad_token_id: fills the left of shorter prompts; any valid id, it is masked.
    """

    def __init__(self, model: paddle.nn.Layer, pad_token_id: int = 0) -> None:
        self._model = model
        # A prefix model puts its prefix in front on every call: it runs the prompts, its inner model the steps.
        self._step_model = model.model if hasattr(model, "prefix_encoder") else model
        self._pad_token_id = pad_token_id
        self._sequence_axis = family_of(model.config).cache_sequence_axis
        self._prefix_length = 0
        self._cache: list[tuple[paddle.Tensor, paddle.Tensor]] = []
        self._mask: paddle.Tensor | None = None  # int64 [b, t], 0 = padding
        self._positions: paddle.Tensor | None = None  # int64 [b, 1], position of the newest token
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
        positions = np.maximum(np.cumsum(mask, axis=-1) - 1, 0)
        mask = paddle.to_tensor(mask)
        with last_position_only(self._step_model, ids.shape):
            outputs = self._model(
                paddle.to_tensor(ids),
                attention_mask=mask,
                position_ids=paddle.to_tensor(positions),
                use_cache=True,
            )
        self._cache = list(outputs[1])
        self._prefix_length = self._cache[0][0].shape[self._sequence_axis] - longest
        if self._prefix_length:
            mask = paddle.concat([paddle.ones([len(prompts), self._prefix_length], dtype=mask.dtype), mask], axis=1)
        self._mask = mask
        self._positions = paddle.to_tensor(positions[:, -1:])
        return outputs[0][:, -1]

    @paddle.no_grad()
    def step(self, tokens: np.ndarray) -> paddle.Tensor:
        """Add one token to each row.

        Args:
            tokens: int64 [b], the tokens chosen from the logits returned last.

        Returns:
            Logits [b, v] of the tokens after them.
        """
        self._positions = self._positions + 1
        self._mask = paddle.concat([self._mask, paddle.ones([len(tokens), 1], dtype=self._mask.dtype)], axis=1)
        cache, self._cache = self._cache, []  # the model frees each layer's old cache as soon as the new one is there
        outputs = self._step_model(
            paddle.to_tensor(np.asarray(tokens, dtype=np.int64)[:, None]),
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=cache,
            use_cache=True,
        )
        self._cache = list(outputs[1])
        return outputs[0][:, -1]

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
        self._mask = self._select(self._mask, rows, unused, axis=1)
        # One layer at a time: the whole cache is never there twice.
        for layer, pair in enumerate(self._cache):
            self._cache[layer] = tuple(self._select(part, rows, unused, self._sequence_axis) for part in pair)

    def _select(self, tensor: paddle.Tensor, rows: paddle.Tensor, unused: int, axis: int) -> paddle.Tensor:
        """Take ``rows`` and leave out the ``unused`` tokens behind the prefix on ``axis``."""
        selected = paddle.index_select(tensor, rows, axis=0)
        if not unused:
            return selected
        start = self._prefix_length
        parts = paddle.split(selected, [start, unused, -1] if start else [unused, -1], axis=axis)
        return paddle.concat([parts[0], parts[2]], axis=axis) if start else parts[1]


@contextmanager
def last_position_only(model: paddle.nn.Layer, shape: Sequence[int]) -> Iterator[None]:
    """Let the output projection see only the last position: prompts need no logits of their own.

    Args:
        model: the causal language model.
        shape: [b, s] of the input; hidden states of another layout are left alone.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, paddle.nn.Layer) or isinstance(head, paddle.nn.Embedding):
        yield
        return

    def slice_input(layer: paddle.nn.Layer, inputs: tuple) -> tuple:
        hidden = inputs[0]
        if hidden.ndim != 3 or list(hidden.shape[:2]) != list(shape):
            return inputs
        return (hidden[:, -1:], *inputs[1:])

    hook = head.register_forward_pre_hook(slice_input)
    try:
        yield
    finally:
        hook.remove()
