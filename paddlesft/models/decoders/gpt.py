"""GPT: learned positions, keys and values as [b, k, heads, head size].

PaddleNLP's ``GPTModel.forward`` (3.0.0b4) is not used, because it counts a prefix among the positions, has a causal
table that ends where a prefix would still have to fit in, loses the prefix when layers are recomputed
(``TransformerDecoder.recompute_training`` is given no cache) and recomputes nothing at ``recompute_granularity: full``.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import paddle

from paddlesft.errors import ConfigError
from paddlesft.models.decoders.causal_masks import additive
from paddlesft.models.decoders.learned_positions import MASKED, LearnedPositionsDecoder


class GPTDecoder(LearnedPositionsDecoder):
    """Runs GPT-2 and GPT-3 models. Granularities below ``full`` are PaddleNLP's own, inside its layers."""

    def recomputes(self, number: int) -> bool:
        return self.lm.config.recompute_granularity == "full" and super().recomputes(number)

    def announce_length(self, length: int) -> None:
        config = self.lm.config
        if config.sequence_parallel and self.layers[0].self_attn.config.seq_length != length:
            layers_config = copy(config)  # they read it there, and the model's own is written to config.json
            layers_config.seq_length = length
            for layer in self.layers:
                layer.self_attn.config = layers_config

    def check_switches(self) -> None:
        if self.lm.config.use_flash_attention:
            raise ConfigError(
                "use_flash_attention: true, but PaddleNLP's GPT leaves the mask out then: padded and packed rows would "
                "be computed wrongly. Set it to false."
            )

    def start(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor,
        visible: paddle.Tensor,
        position_ids: paddle.Tensor,
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        self.check_switches()
        hidden = self.body.embeddings(input_ids=input_ids, position_ids=self.checked_positions(position_ids))
        return hidden, (additive(visible, MASKED),)

    def layer(
        self,
        layer: paddle.nn.Layer,
        use_cache: bool,
        hidden: paddle.Tensor,
        keys: Any,
        values: Any,
        mask: paddle.Tensor,
    ) -> tuple[paddle.Tensor, Any]:
        past = None if keys is None else (keys, values)
        output = layer(hidden, attention_mask=mask, use_cache=use_cache, past_key_value=past)
        return (output[0], output[-1]) if use_cache else (output, None)

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.decoder.norm(hidden)
