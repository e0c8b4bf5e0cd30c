"""GLM: a blank-filling decoder with learned positions; its cache is the hidden states that entered each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from paddlesft.errors import DataError, ModelDirectoryError
from paddlesft.models.decoders.blank_filling import BlankFillingDecoder, Layout


class GLMDecoder(BlankFillingDecoder):
    """Runs ``GLMModel``; the cache is a list of hidden states [b, p, h], one for each layer and one behind the last."""

    marks = "[gMASK]<|endoftext|><|startofpiece|>"

    @property
    def start_id(self) -> int:
        """Id of ``<|startofpiece|>``."""
        return self._id("sop_token_id")

    @property
    def blank_ids(self) -> Sequence[Sequence[int]]:
        """Ids of ``[gMASK]``, ``[sMASK]`` and ``[MASK]``."""
        return ([self._id("gmask_token_id"), self._id("smask_token_id"), self._id("mask_token_id")],)

    def _id(self, key: str) -> int:
        found = getattr(self.lm.config, key, None)
        if found is None:
            raise ModelDirectoryError(
                f"config.json has no {key}, and there is no tokenizer beside it to take the id from. Copy the "
                "tokenizer's files into the model's directory."
            )
        return found

    def layout(self, input_ids: np.ndarray, segment_ids: np.ndarray) -> Layout:
        """Find where the tokens of a batch stand; see ``BlankFillingDecoder.layout``."""
        layout = super().layout(input_ids, segment_ids)
        last = int(layout.positions.max(initial=0))
        if last > self.lm.config.max_sequence_length:
            raise DataError(
                f"A row has a token at position {last}, behind the last of the "
                f"{self.lm.config.max_sequence_length + 1} that this model has learned. Lower max_length."
            )
        return layout

    def call(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor | None,
        position_ids: paddle.Tensor | None,
        cache: Any,
        use_cache: bool,
    ) -> tuple[paddle.Tensor, Any]:
        """Call the decoder below its head, which ``GLMModel`` would run on every token; see ``CausalDecoder.call``."""
        if cache is not None:
            cache = list(cache)[: len(self.body.transformer.layers) + 1]
        hidden, cache = self.body.transformer(
            self.body.word_embeddings(input_ids), position_ids, attention_mask, cache, return_dict=False
        )
        return hidden, cache if use_cache else None

    @property
    def head(self) -> paddle.nn.Layer:
        """The word embeddings, which turn hidden states into logits too."""
        return self.body.word_embeddings

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Turn hidden states [b, s, h] into logits [b, s, v]."""
        return paddle.matmul(hidden, self.head.weight, transpose_y=True)


def prefix_hidden_states(states: paddle.Tensor) -> list[paddle.Tensor]:
    """Bring a tuned prefix into the form of GLM's cache: a trained hidden state for each layer and prefix token.

    The layers make keys and values of it as they do of a real token's hidden state, layer norm first.

    Args:
        states: [b, w, n, heads, head size] from the prefix encoder, n at least the number of layers.

    Returns:
        n + 1 tensors [b, w, h]; the last is 0 and stands behind the last layer, where nothing reads it.
    """
    batch, width, count = states.shape[:3]
    layers = states.reshape([batch, width, count, -1]).unbind(axis=2)
    return [*layers, paddle.zeros_like(layers[-1])]
