"""ChatGLM-6B: a blank-filling decoder with rotary positions; hidden states and cache have the tokens on axis 0."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import paddle

from paddlesft.models.blank_filling import Marks, chatglm_marks
from paddlesft.models.decoders.blank_filling import BlankFillingDecoder


class ChatGLMDecoder(BlankFillingDecoder):
    """Runs ``ChatGLMModel``; the cache is a list of (keys, values), each [p, b, heads, head size]."""

    @cached_property
    def marks(self) -> Marks:
        """How its rows are read."""
        return chatglm_marks(self.lm.config.to_dict())

    def call(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor | None,
        position_ids: paddle.Tensor | None,
        cache: Any,
        use_cache: bool,
    ) -> tuple[paddle.Tensor, Any]:
        """Call the decoder; see ``CausalDecoder.call``."""
        hidden, cache = super().call(input_ids, attention_mask, position_ids, cache, use_cache)
        return self.rows_first(hidden), cache

    def rows_first(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return hidden.transpose([1, 0, 2])
