"""BLOOM: no positions, but a bias of each key by its distance (ALiBi, Press et al. 2022, arXiv:2108.12409).

What is added to a score is slope * position of the key. That is slope * distance up to a constant of each query, which
the softmax does not see, so positions may begin anywhere, but have to be consecutive within what a query sees: padding
does not count, a tuned prefix comes first, and every segment of a packed row goes on right behind the prefix.

PaddleNLP's ``BloomModel.forward`` (3.0.0b4) is not used, because it counts the positions of packed rows through: the
prefix would be further away from every next segment, and bfloat16 would not tell the keys at a row's end apart.
"""

from __future__ import annotations

import math
from typing import Any

import paddle

from paddlesft.errors import ConfigError
from paddlesft.models.decoders.causal_masks import additive
from paddlesft.models.decoders.layer_by_layer import LayerByLayerDecoder

MASKED = float(paddle.finfo(paddle.float32).min)  # scores are float32 there, and a bias may be large


def slopes(num_heads: int) -> list[float]:
    """Return the slope of each head: powers of 2 ** (-8 / n), as section 3 of the paper has them.

    Where the number of heads is no power of two, n is the next lower one, and the other heads take every second slope
    of a model with 2 n heads.
    """
    n = 2 ** int(math.log2(num_heads))
    first = [2 ** (-8 * i / n) for i in range(1, n + 1)]
    return first + [2 ** (-4 * i / n) for i in range(1, 2 * (num_heads - n), 2)]


class BloomDecoder(LayerByLayerDecoder):
    """Runs BLOOM models. Recompute keeps the input of whole layers at every ``recompute_granularity``."""

    @property
    def layers_owner(self) -> paddle.nn.Layer:
        return self.body

    @property
    def layers(self) -> paddle.nn.LayerList:
        return self.body.h

    def start(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor,
        visible: paddle.Tensor,
        position_ids: paddle.Tensor,
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        config = self.lm.config
        if config.use_long_sequence_strategies:
            raise ConfigError(
                "use_long_sequence_strategies: true is not supported for BLOOM: its ALiBi reaches any length. Set it "
                "to false (in config.json where it stands there)."
            )
        heads = config.n_head // max(config.tensor_parallel_degree, 1)
        first = heads * max(config.tensor_parallel_rank, 0)
        hidden = self.body.word_embeddings_layernorm(self.body.word_embeddings(input_ids))
        bias = paddle.to_tensor(slopes(config.n_head)[first : first + heads], dtype="float32").reshape([1, heads, 1, 1])
        bias = bias * self.key_positions(attention_mask, position_ids).astype("float32").unsqueeze([1, 2])
        batch, _, queries, keys = visible.shape
        mask = additive(visible, MASKED).expand([batch, heads, queries, keys]).reshape([-1, queries, keys])
        return hidden, (mask, bias.reshape([-1, 1, keys]).astype(hidden.dtype))

    def key_positions(self, attention_mask: paddle.Tensor, position_ids: paddle.Tensor) -> paddle.Tensor:
        """Return where each key stands, int64 [b, k]; see the top of this file."""
        if attention_mask.ndim == 2:
            return paddle.clip(paddle.cumsum(attention_mask.astype("int64"), axis=-1) - 1, min=0)
        prefix = paddle.arange(self.prefix_length, dtype="int64").unsqueeze(0).expand([position_ids.shape[0], -1])
        return paddle.concat([prefix, position_ids + self.prefix_length], axis=-1)

    def layer(
        self,
        layer: paddle.nn.Layer,
        use_cache: bool,
        hidden: paddle.Tensor,
        keys: Any,
        values: Any,
        mask: paddle.Tensor,
        bias: paddle.Tensor,
    ) -> tuple[paddle.Tensor, Any]:
        past = None if keys is None else (keys, values)
        output = layer(hidden, layer_past=past, attention_mask=mask, use_cache=use_cache, alibi=bias)
        return output[0], output[1] if use_cache else None

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.body.ln_f(hidden)

    def apply_head(self, hidden: paddle.Tensor) -> paddle.Tensor:
        return self.head(hidden, self.lm.config.tensor_parallel_output)
