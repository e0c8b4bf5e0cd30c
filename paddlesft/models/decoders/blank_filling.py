"""Models that fill a blank: the prompt attends in both directions, the reply is written behind a start mark.

GLM (Du et al. 2022, arXiv:2103.10360) reads a text with a mask token in it and then writes what belongs there:

    token           What  is  new  ?  [MASK]  <start>  Not  much  <end>
    position        0     1   2    3  4       4        4    4     4
    block position  0     0   0    0  0       1        2    3     4
    seen by         all tokens of the row     itself and what follows

So a row holds one reply, and positions have two parts: where the blank is, and how far behind it a token stands.
Everything is found in the token ids; padding is not counted, wherever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle

from paddlesft.models.blank_filling import Marks
from paddlesft.models.decoders.causal import CausalDecoder
from paddlesft.models.decoders.masks import block_diagonal_mask


class Layout(NamedTuple):
    """Where the tokens of a batch stand.

    Attributes:
        positions: int64 [b, 2, s]; positions and block positions, 0 on padding.
        prompt: bool [b, s]; True on the tokens before the start mark.
    """

    positions: np.ndarray
    prompt: np.ndarray


class BlankFillingDecoder(CausalDecoder):
    """Runs a decoder whose prompt attends in both directions; see ``CausalDecoder`` for the interface."""

    cache_argument = "cache"
    marks: Marks  # how its rows are read

    def run(
        self,
        input_ids: paddle.Tensor,
        mask: paddle.Tensor | None = None,
        segment_ids: paddle.Tensor | None = None,
        position_ids: paddle.Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> tuple[paddle.Tensor, Any]:
        """Run the decoder, with its adapter; see ``CausalDecoder.run``.

        Args:
            input_ids: as there; without a cache, every row (or segment) holds a blank and a start mark.
            mask: as there.
            segment_ids: as there.
            position_ids: needed with a cache only, int64 [b, 2, s]; else they follow from ``input_ids``.
            cache: as there.
            use_cache: as there.

        Raises:
            DataError: a row without a blank or start mark.
        """
        if cache is not None:
            return self.call(input_ids, self.later_mask(input_ids, mask, cache), position_ids, cache, use_cache)
        if segment_ids is None:
            segment_ids = paddle.ones_like(input_ids) if mask is None else mask
        layout = self.layout(input_ids.numpy(), segment_ids.numpy())
        attention_mask = block_diagonal_mask(segment_ids, self.prefix_length, paddle.to_tensor(layout.prompt))
        if self.prefix is not None:
            cache = self.prefix._get_past_key_values(input_ids.shape[0])
        return self.call(input_ids, attention_mask, paddle.to_tensor(layout.positions), cache, use_cache)

    def positions(self, input_ids: paddle.Tensor, mask: paddle.Tensor) -> paddle.Tensor:
        """Return the positions of a batch of prompts, int64 [b, 2, s]; see ``CausalDecoder.positions``."""
        return paddle.to_tensor(self.layout(input_ids.numpy(), mask.numpy()).positions)

    def next_positions(self, position_ids: paddle.Tensor) -> paddle.Tensor:
        """Return the positions of the tokens that follow the last ones, int64 [b, 2, 1]."""
        last = position_ids[:, :, -1:]
        return paddle.concat([last[:, :1], last[:, 1:] + 1], axis=1)

    def layout(self, input_ids: np.ndarray, segment_ids: np.ndarray) -> Layout:
        """Find where the tokens of a batch stand.

        Args:
            input_ids: int64 [b, s].
            segment_ids: int64 [b, s]; 1..n number the rows packed into one, 0 is padding.

        Raises:
            DataError: a segment without a blank or start mark, or one longer than the model has positions for.
        """
        positions = np.zeros([input_ids.shape[0], 2, input_ids.shape[1]], dtype=np.int64)
        prompt = np.zeros(input_ids.shape, dtype=bool)
        for row, segments in enumerate(segment_ids):
            for segment in np.unique(segments[segments != 0]):
                at = np.flatnonzero(segments == segment)
                found, start = self.marks.places(input_ids[row, at], self.lm.config)
                positions[row][:, at] = found
                prompt[row, at[:start]] = True
        return Layout(positions, prompt)

    def later_mask(self, input_ids: paddle.Tensor, mask: paddle.Tensor | None, cache: Any) -> paddle.Tensor:
        """Return the mask of tokens behind a cache: bool [b, 1, s, w + p + s]; they see all before them."""
        batch, length = input_ids.shape
        if mask is None:
            first = cache[0][0] if isinstance(cache[0], tuple | list) else cache[0]
            past = first.shape[self.family.cache_sequence_axis] - self.prefix_length
            mask = paddle.ones([batch, past + length], dtype="int64")
        keys = self.with_prefix(mask).astype("bool")
        earlier = paddle.ones([length, keys.shape[1] - length], dtype="bool")
        causal = paddle.concat([earlier, paddle.tril(paddle.ones([length, length], dtype="bool"))], axis=1)
        return (keys.unsqueeze(1) & causal).unsqueeze(1)

    def as_prompt(self, token_ids: Sequence[int]) -> list[int]:
        """Put a blank and a start mark into the middle of any token ids, so that both kinds of attention are used."""
        special = {self.marks.start_id, *(i for group in self.marks.blank_ids for i in group)}
        ids = [i for i in token_ids if i not in special]
        half = (len(ids) + 1) // 2
        return [*ids[:half], self.marks.blank_ids[0][0], self.marks.start_id, *ids[half:]]
