"""Mistral: a token sees itself and the tokens before it within a sliding window.

PaddleNLP's ``MistralModel.forward`` (3.0.0b4) is not used, because it knows no window (``sliding_window`` of the config
is read nowhere), does not take bool masks, counts a tuned prefix among the positions, and with recompute fails in the
backward pass of Prefix-Tuning: it hides the keys and values of the prefix from ``recompute``.
"""

from __future__ import annotations

from typing import Any

import paddle

from paddlesft.models.decoders.causal_masks import additive
from paddlesft.models.decoders.layer_by_layer import LayerByLayerDecoder


class MistralDecoder(LayerByLayerDecoder):
    """Runs Mistral models; a tuned prefix is seen from everywhere, however far behind the window it stands."""

    @property
    def layers_owner(self) -> paddle.nn.Layer:
        return self.body

    @property
    def layers(self) -> paddle.nn.LayerList:
        return self.body.layers

    def start(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor,
        visible: paddle.Tensor,
        position_ids: paddle.Tensor,
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        hidden = self.body.embed_tokens(input_ids)
        mask = additive(self.within_window(visible), float(paddle.finfo(hidden.dtype).min)).astype(hidden.dtype)
        return hidden, (mask, position_ids)

    def within_window(self, visible: paddle.Tensor) -> paddle.Tensor:
        """Take keys that are ``sliding_window`` tokens or more behind their query out of a mask [b, 1, s, k]."""
        window = self.lm.config.sliding_window
        queries, keys = visible.shape[-2:]
        if not window or keys - self.prefix_length <= window:
            return visible
        key = paddle.arange(keys)
        near = key > paddle.arange(keys - queries, keys).unsqueeze(1) - window
        return visible & (near | (key < self.prefix_length))

    def layer(
        self,
        layer: paddle.nn.Layer,
        use_cache: bool,
        hidden: paddle.Tensor,
        keys: Any,
        values: Any,
        mask: paddle.Tensor,
        position_ids: paddle.Tensor,
    ) -> tuple[paddle.Tensor, Any]:
        past = None if keys is None else (keys, values)
        output = layer(hidden, mask, position_ids, past_key_value=past, use_cache=use_cache)
        return output if use_cache else (output[0], None)

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.norm(hidden)
