"""The model of Prefix-Tuning: a trained encoder gives every layer keys and values to stand in front of its own.

PaddleNLP's ``PrefixModelForCausalLM`` (3.0.0b4) divides the encoder among tensor-parallel ranks, but reads the divided
output as other layers and heads than a single process does, joins it in the wrong order when it saves, crashes for
ChatGLM2 and knows no pipelines. Here every rank holds the whole encoder and takes the keys and values of its own layers
and heads, so that the same encoder means the same in every layout. What a rank does not take has no gradient there:

- between tensor-parallel ranks the gradients of keys and values are summed in the backward pass, as the inputs of a
  column-parallel layer have it; every rank then has the gradients of the whole encoder;
- between the stages of a pipeline the gradients of the encoder's weights are summed once, after all micro-batches
  (``sum_over_stages``), as those of a weight that several stages share.

Shapes: b rows, w width of the prefix, n layers, k key/value heads, d head size, h width of the hidden layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import nn
from paddle.distributed import fleet
from paddle.distributed.fleet.layers.mpu import mp_ops
from paddle.distributed.fleet.meta_parallel import PipelineLayer
from paddlenlp.peft import PrefixConfig, PrefixModelForCausalLM
from paddlenlp.transformers.model_utils import dtype_guard

from paddlesft.models.load import quiet_paddlenlp
from paddlesft.tuning.prefix_stages import put_in_front

WHOLE = -1  # what PaddleNLP calls the degree of an encoder that is not divided


class PrefixModel(PrefixModelForCausalLM):
    """A frozen model and its prefix.

    Args:
        model: the base model, whole, with divided layers, or a stage of a pipeline.
        config: sizes of the encoder.
        to_cache: brings [b, w, 2 n, k, d], all keys first, into the family's cache layout, one (keys, values) per
            layer.
    """

    def __init__(self, model: nn.Layer, config: PrefixConfig, to_cache: Callable[[paddle.Tensor], Any]) -> None:
        config.tensor_parallel_degree = WHOLE
        if isinstance(model, PipelineLayer):
            self._set_up_stage(model, config, to_cache)
        else:
            with quiet_paddlenlp(logging.ERROR):  # it warns that it takes over the model's degree
                super().__init__(model, config, postprocess_past_key_value=to_cache)
            config.tensor_parallel_degree = WHOLE

    def _set_up_stage(self, model: nn.Layer, config: PrefixConfig, to_cache: Callable[[paddle.Tensor], Any]) -> None:
        """Do what the constructor does, which PaddleNLP's refuses for pipelines."""
        nn.Layer.__init__(self)
        self.prefix_config, self.model, self.config = config, model, model.config
        with dtype_guard(config.dtype):
            self.prefix_encoder = self._create_prefix_encoder()
        self.prefix_tokens = paddle.arange(config.num_prefix_tokens, dtype="int64")
        self.postprocess_past_key_value, self.pad_attention_mask, self.inference = to_cache, None, False
        self.forward = model.forward
        put_in_front(model, config.num_prefix_tokens, lambda number, rows: self.cache_of([number], rows)[0])
        self.mark_only_prefix_as_trainable()
        group = fleet.get_hybrid_communicate_group().get_pipe_parallel_group()
        for parameter in self.prefix_encoder.parameters():  # its gradient counts once in the norm over all stages
            parameter.is_firstly_shared = group.rank == 0

    def _get_past_key_values(self, batch_size: int) -> Any:
        """Return the cache that stands in front of all layers; PaddleNLP's name for it."""
        return self.cache_of(range(self.prefix_config.num_hidden_layers), batch_size)

    def cache_of(self, layers: Sequence[int], rows: int) -> Any:
        """Return the keys and values in front of some layers, of this rank's heads.

        Args:
            layers: their numbers in the whole model.
            rows: of the batch, all of which get the same prefix.

        Returns:
            One (keys, values) per layer, in the family's cache layout.
        """
        both = self.keys_and_values(layers)
        degree, rank = max(self.config.tensor_parallel_degree, 1), max(self.config.tensor_parallel_rank, 0)
        if degree > 1:
            group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
            both = mp_ops._c_identity(both, group=group)  # sums the gradients of all ranks' heads
        both = both.expand([rows, *both.shape[1:]])
        both = F.dropout(both, self.prefix_config.prefix_dropout, training=self.model.training)
        own = both.shape[3] // degree
        return self.postprocess_past_key_value(both[:, :, :, rank * own : (rank + 1) * own])

    def keys_and_values(self, layers: Sequence[int]) -> paddle.Tensor:
        """Run the encoder for some layers.

        Returns:
            [1, w, 2 n, k, d] with n layers asked for: all keys, then all values.
        """
        config, encoder = self.prefix_config, self.prefix_encoder
        number, width = config.num_hidden_layers, self.num_heads * self.head_dim
        hidden = self.prefix_tokens
        if len(layers) == number:
            for part in list(encoder)[:-1]:
                hidden = part(hidden)
        else:  # compute the columns of these layers only
            blocks = paddle.to_tensor([*layers, *(number + layer for layer in layers)])
            columns = paddle.arange(2 * number * width).reshape([2 * number, width])[blocks].flatten()
            for part in list(encoder)[:-2]:
                hidden = part(hidden)
            weight = paddle.index_select(encoder[-2].weight, columns, axis=1)
            if config.prefix_projection:
                hidden = F.linear(hidden, weight, paddle.index_select(encoder[-2].bias, columns))
            else:
                hidden = weight  # every token of the prefix once, in order
        return hidden.reshape([1, config.num_prefix_tokens, 2 * len(layers), self.num_heads, self.head_dim])


def stage_or_model(model: nn.Layer) -> nn.Layer:
    """Return the stage of a pipeline that has a prefix, as Fleet and PaddleNLP want it; other models as they are."""
    return model.model if isinstance(model, PrefixModel) and isinstance(model.model, PipelineLayer) else model


def sum_over_stages(model: nn.Layer) -> None:
    """Add up what the stages of a pipeline have found for the encoder of their common prefix.

    To be called by all ranks after the backward passes of a step; does nothing to models without prefix or pipeline.
    """
    if stage_or_model(model) is model:
        return
    group = fleet.get_hybrid_communicate_group().get_pipe_parallel_group()
    for parameter in model.prefix_encoder.parameters():
        if parameter.grad is None:  # no layer of this stage, or no backward pass
            parameter.grad = paddle.zeros_like(parameter)
        dist.all_reduce(parameter.grad, group=group)
