"""ChatGLM2-6B, ChatGLM3-6B: causal; hidden states and cache have the tokens on axis 0, the decoder holds the head."""

from __future__ import annotations

from typing import Any

import paddle

from paddlesft.errors import ConfigError, DataError
from paddlesft.models.decoders.causal import CausalDecoder


class ChatGLMv2Decoder(CausalDecoder):
    """Runs ``ChatGLMv2Model``; the cache is a tuple of (keys, values), each [p, b, groups, head size]."""

    def call(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor | None,
        position_ids: paddle.Tensor | None,
        cache: Any,
        use_cache: bool,
    ) -> tuple[paddle.Tensor, Any]:
        """Call the decoder; see ``CausalDecoder.call``.

        Raises:
            ConfigError: flash attention, which would mix up the rows of a batch.
            DataError: more tokens than there are rotary positions.
        """
        self.check_switches()
        limit, width = self.lm.config.max_sequence_length, input_ids.shape[1]
        if width > limit:  # packed rows may be wider, as their positions restart
            needed = width if position_ids is None else int(position_ids.max()) + 1
            if needed > limit:
                raise DataError(
                    f"A row has {needed} tokens, more than the {limit} positions of this model (max_sequence_length "
                    "in its config.json). Lower max_length."
                )
        # without use_cache the layers would overlook a cache they are given, and with it a tuned prefix
        hidden, new_cache = super().call(
            input_ids, attention_mask, position_ids, cache, use_cache=use_cache or cache is not None
        )
        return self.rows_first(hidden), new_cache if use_cache else None

    def rows_first(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return hidden.transpose([1, 0, 2])

    def check_switches(self) -> None:
        if self.lm.config.use_flash_attention:
            raise ConfigError(
                "use_flash_attention: true, but PaddleNLP's flash attention mixes up the rows of a batch in ChatGLM2 "
                "and ChatGLM3. Set use_flash_attention to false."
            )

    @property
    def head(self) -> paddle.nn.Layer:
        """The layer that turns hidden states into logits."""
        return self.body.output_layer

    def as_rows(self, tokens: paddle.Tensor, b: int, s: int) -> paddle.Tensor:
        return tokens.reshape([s, b, -1])

    def apply_head(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.head(hidden.transpose([1, 0, 2]))
