"""GLM: a blank-filling decoder with learned positions, called below its head, with a cache of keys and values."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import paddle

from paddlesft.models.blank_filling import Marks, glm_marks
from paddlesft.models.decoders.blank_filling import BlankFillingDecoder
from paddlesft.models.hooked_call import call_with_hooks
from paddlesft.quirks.glm_hidden_state_cache import caching_projection


class GLMDecoder(BlankFillingDecoder):
    """Runs ``GLMModel``; the cache is a list of (keys, values), each [b, heads, p, head size]."""

    @cached_property
    def marks(self) -> Marks:
        """How its rows are read."""
        return glm_marks(self.lm.config.to_dict())

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
