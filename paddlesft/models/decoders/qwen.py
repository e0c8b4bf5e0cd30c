"""Qwen 1: rotary positions, which PaddleNLP's model lets begin at 0 in every call unless it is told them.

Its ``apply_rotary_pos_emb`` (paddlenlp 3.0.0b4) takes neither padding on the left nor a cache into account.
"""

from __future__ import annotations

from typing import Any

import paddle

from paddlesft.errors import ConfigError
from paddlesft.models.decoders.causal import CausalDecoder


class QWenDecoder(CausalDecoder):
    """Runs Qwen 1 models; always says the positions."""

    def call(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor | None,
        position_ids: paddle.Tensor | None,
        cache: Any,
        use_cache: bool,
    ) -> tuple[paddle.Tensor, Any]:
        self.check_switches()
        if position_ids is None:
            length, past = input_ids.shape[1], cache[0][0].shape[1] if cache is not None else 0
            mask = attention_mask
            if mask is None:
                mask = paddle.ones([input_ids.shape[0], past + length], dtype="int64")
            position_ids = self.positions(input_ids, mask[:, self.prefix_length :])[:, -length:]
        return super().call(input_ids, attention_mask, position_ids, cache, use_cache)

    def check_switches(self) -> None:
        config = self.lm.config
        if config.recompute and getattr(config, "no_recompute_layers", None):
            raise ConfigError(
                "no_recompute_layers: PaddleNLP's Qwen computes all of its layers again or none. Leave the key out."
            )
