"""GLM: a blank-filling decoder with learned positions, called below its head, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from paddlesft.errors import DataError, ModelDirectoryError
from paddlesft.models.decoders.blank_filling import BlankFillingDecoder, Layout
from paddlesft.models.hooked_call import call_with_hooks
from paddlesft.quirks.glm_hidden_state_cache import caching_projection


class GLMDecoder(BlankFillingDecoder):
    """Runs ``GLMModel``; the cache is a list of (keys, values), each [b, heads, p, head size]."""

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
        stack = self.body.transformer
        layers = [caching_projection(layer.attention) for layer in stack.layers]
        for layer, past in zip(layers, cache or [None] * len(layers)):
            layer.past, layer.collects = past, use_cache
        hidden = stack(self.body.word_embeddings(input_ids), position_ids, attention_mask, return_dict=False)[0]
        new_cache = [layer.newest for layer in layers] if use_cache else None
        again = stack.enable_recompute and paddle.is_grad_enabled()  # backward will run the layers once more
        for layer in layers:
            layer.past, layer.collects, layer.newest = layer.past if again else None, False, None
        return hidden, new_cache

    @property
    def head(self) -> paddle.nn.Layer:
        """The word embeddings, which turn hidden states into logits too."""
        return self.body.word_embeddings

    def apply_head(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return call_with_hooks(self.head, lambda x: paddle.matmul(x, self.head.weight, transpose_y=True), hidden)
