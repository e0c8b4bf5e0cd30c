"""Decoders whose layers are called from here, because the loop of their model in PaddleNLP cannot be used as it is.

What is wrong there is said in the file of each family. A family gives three parts: ``start`` (embeddings, and what all
layers need), ``layer`` (one layer) and ``finish`` (the final norm). The layers themselves, which hold all weights, are
PaddleNLP's.

Shapes as in ``causal.py``; k = w + p + s keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import paddle
from paddle.distributed.fleet.utils import recompute

from paddlesft.models.decoders.causal import CausalDecoder
from paddlesft.models.decoders.causal_masks import causal_mask


class LayerByLayerDecoder(CausalDecoder, ABC):
    """Runs the layers of a model one after the other, each computed again in the backward pass where that is asked."""

    def call(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor | None,
        position_ids: paddle.Tensor | None,
        cache: Any,
        use_cache: bool,
    ) -> tuple[paddle.Tensor, Any]:
        """Run the decoder; see ``run``. ``attention_mask`` is 2-D over all keys, or 4-D and bool for packed rows."""
        if attention_mask is None:
            past = cache[0][0].shape[self.family.cache_sequence_axis] if cache is not None else 0
            attention_mask = paddle.ones([input_ids.shape[0], past + input_ids.shape[1]], dtype="int64")
        if position_ids is None:
            position_ids = self.last_positions(attention_mask, input_ids.shape[1])
        self.announce_length(input_ids.shape[1])
        visible = attention_mask if attention_mask.ndim == 4 else causal_mask(attention_mask, input_ids.shape[1])
        hidden, shared = self.start(input_ids, attention_mask, visible, position_ids)
        present = []
        for number, layer in enumerate(self.layers):
            keys, values = cache[number] if cache is not None else (None, None)
            hidden, pair = self.run_layer(number, layer, use_cache, hidden, keys, values, *shared)
            present.append(pair)
        return self.gathered(self.finish(hidden), input_ids.shape), present if use_cache else None

    def last_positions(self, attention_mask: paddle.Tensor, length: int) -> paddle.Tensor:
        """Return the positions of the last ``length`` tokens of a mask [b, k]; those of a tuned prefix do not count."""
        mask = attention_mask[:, self.prefix_length :]
        return paddle.clip(paddle.cumsum(mask.astype("int64"), axis=-1) - 1, min=0)[:, -length:]

    def run_layer(self, number: int, layer: paddle.nn.Layer, use_cache: bool, *tensors: Any) -> tuple[Any, Any]:
        """Run a layer; during training with recompute, keep its input only."""

        def forward(*given: Any) -> Any:
            hidden, pair = self.layer(layer, use_cache, *given)
            return (hidden, *pair) if use_cache else hidden

        if self.recomputes(number) and not use_cache and any(not t.stop_gradient for t in tensors if t is not None):
            hidden = recompute(forward, *tensors, use_reentrant=self.lm.config.recompute_use_reentrant)
        else:
            hidden = forward(*tensors)
        return (hidden[0], (hidden[1], hidden[2])) if use_cache else (hidden, None)

    def recomputes(self, number: int) -> bool:
        """Whether a layer is computed again in the backward pass as a whole; the trainer sets ``enable_recompute``."""
        config = self.lm.config
        if not (self.lm.training and getattr(self.layers_owner, "enable_recompute", False)):
            return False
        return number not in (getattr(config, "no_recompute_layers", None) or ())

    @property
    @abstractmethod
    def layers_owner(self) -> paddle.nn.Layer:
        """The layer on which the trainer turns recompute on."""

    @property
    @abstractmethod
    def layers(self) -> paddle.nn.LayerList:
        """The model's decoder layers."""

    @abstractmethod
    def start(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor,
        visible: paddle.Tensor,
        position_ids: paddle.Tensor,
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        """Return the first hidden states [b, s, h] and the tensors that every layer is given.

        Args:
            input_ids: int64 [b, s].
            attention_mask: [b, k], nonzero on keys that are there; of packed rows bool [b, 1, s, k].
            visible: bool [b, 1, s, k].
            position_ids: int64 [b, s].
        """

    @abstractmethod
    def layer(
        self,
        layer: paddle.nn.Layer,
        use_cache: bool,
        hidden: paddle.Tensor,
        keys: paddle.Tensor | None,
        values: paddle.Tensor | None,
        *shared: paddle.Tensor,
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, paddle.Tensor] | None]:
        """Run one layer and return its output and, with ``use_cache``, keys and values to go on with."""

    @abstractmethod
    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Apply what follows the last layer."""
