"""Prefixes in pipelines: every decoder layer of a stage fetches its own keys and values.

PaddleNLP's pipeline classes hand no cache from layer to layer. Their attention layers are those of the whole model,
though, and take one: it is put in here, together with a mask that lets all tokens see it. Each layer runs the encoder
for its own keys and values, in the same pass that uses them, so that recompute finds all of it inside the layer.

Tokens are counted from 0 behind the prefix. Two classes do not hand positions on (Gemma, Qwen 1); they follow from the
mask: a token stands as far from the start of its conversation as it sees tokens.

b rows, s tokens, w width of the prefix.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import paddle
from paddle import nn
from paddle.distributed.fleet.meta_parallel import PipelineLayer

from paddlesft.models.pipeline import decoder_layers

CACHES = ("past_key_value", "layer_past", "kv_cache")  # what attention layers call earlier keys and values
ONLY_WITH_USE_CACHE = "kv_cache"  # that of the one class which overlooks them unless it is to return some too

KeysAndValues = tuple[paddle.Tensor, paddle.Tensor]


def put_in_front(stage: PipelineLayer, length: int, cache_of: Callable[[int, int], KeysAndValues]) -> None:
    """Let the attention layers of a pipeline's stage see keys and values in front of their own.

    Args:
        stage: changed.
        length: how many tokens stand in front.
        cache_of: number of a decoder layer in the whole model, rows -> their keys and values for it.
    """
    for number, layer in decoder_layers(stage).items():
        attention, cache = attention_of(layer)
        attention.forward = partial(_attend, attention.forward, cache, length, partial(cache_of, number))


def attention_of(layer: nn.Layer) -> tuple[nn.Layer, str]:
    """Return the part of a decoder layer that takes earlier keys and values, and by which argument."""
    return next(
        (part, name)
        for part in layer.children()
        for name in CACHES
        if name in inspect.signature(part.forward).parameters
    )


def _attend(
    forward: Callable[..., Any], cache: str, length: int, cache_of: Callable[[int], KeysAndValues],
    *args: Any, **named: Any,
) -> Any:  # fmt: skip
    """Call an attention layer's ``forward`` with more than it was going to be given."""
    signature = inspect.signature(forward)
    call = signature.bind(*args, **named)
    mask = call.arguments["attention_mask"]
    call.arguments[cache] = cache_of(mask.shape[0])
    call.arguments["attention_mask"] = with_prefix(mask, length)
    if "position_ids" in signature.parameters and call.arguments.get("position_ids") is None:
        call.arguments["position_ids"] = positions(mask)
    if cache != ONLY_WITH_USE_CACHE:
        return forward(*call.args, **call.kwargs)
    call.arguments["use_cache"] = True
    return forward(*call.args, **call.kwargs)[0], None


def with_prefix(mask: paddle.Tensor, length: int) -> paddle.Tensor:
    """Let every token see a prefix.

    Args:
        mask: [b, 1, s, s]; bool, or what is added to attention scores.
        length: of the prefix, w.

    Returns:
        [b, 1, s, w + s] of the same kind.
    """
    shape = [*mask.shape[:-1], length]
    seen = paddle.ones(shape, mask.dtype) if mask.dtype == paddle.bool else paddle.zeros(shape, mask.dtype)
    return paddle.concat([seen, mask], axis=-1)


def positions(mask: paddle.Tensor) -> paddle.Tensor:
    """Return the positions of tokens, which a mask [b, 1, s, s] tells: int64 [b, s]."""
    visible = mask if mask.dtype == paddle.bool else mask == 0
    return paddle.clip(visible[:, 0].astype("int64").sum(axis=-1) - 1, min=0)
