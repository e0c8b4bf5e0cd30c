"""Put the fast classes in the place of upstream's in a loaded model, and take them out again."""

from __future__ import annotations

import os

import paddle
from paddle import nn
from paddlenlp.transformers.llama.modeling import LlamaAttention, LlamaLMHead, LlamaMLP, LlamaRMSNorm

from paddlesft.models.fast.attention import FastAttention
from paddlesft.models.fast.linear_cross_entropy import FastLMHead
from paddlesft.models.fast.mlp import FastMLP
from paddlesft.models.fast.rms_norm import FastRMSNorm
from paddlesft.quirks import released_memory

VARIABLE = "PADDLESFT_FAST"
SWAPS: dict[type[nn.Layer], type[nn.Layer]] = {
    LlamaRMSNorm: FastRMSNorm,
    LlamaAttention: FastAttention,
    LlamaMLP: FastMLP,
    LlamaLMHead: FastLMHead,
}


def accelerate(model: nn.Layer) -> list[str]:
    """Make a model of the Llama family train faster on CPU; its parameters, its losses and its saved form stay as is.

    Safe to call on any model, bare or inside ``LoRAModel`` / ``PrefixModelForCausalLM``, before or after adapters are
    added, and more than once. ``PADDLESFT_FAST=0`` in the environment turns it off.

    Args:
        model: any layer.

    Returns:
        The names of the upstream classes that were replaced in this model, now or earlier; empty where nothing
        applies: on other devices (upstream's fused kernels serve there), other dtypes than float32, other families,
        and layers split over ranks.
    """
    if os.environ.get(VARIABLE, "1") == "0" or not paddle.get_device().startswith("cpu"):
        return []
    found = set()
    for layer in model.sublayers(include_self=True):
        upstream = next((old for old, new in SWAPS.items() if type(layer) in (old, new)), None)
        if upstream is None or not fits(layer):
            continue
        layer.__class__ = SWAPS[upstream]
        found.add(upstream.__name__)
    if found:
        released_memory.apply()
    return sorted(found)


def restore(model: nn.Layer) -> None:
    """Undo ``accelerate``."""
    for layer in model.sublayers(include_self=True):
        upstream = next((old for old, new in SWAPS.items() if type(layer) is new), None)
        if upstream is not None:
            layer.__class__ = upstream


def fits(layer: nn.Layer) -> bool:
    """Return whether a layer is configured the way its fast class computes."""
    if any(p.dtype != paddle.float32 for p in layer.parameters(include_sublayers=True)):
        return False
    if isinstance(layer, LlamaMLP):
        return layer.tensor_parallel_degree <= 1 and not layer.fuse_attention_ffn
    config = layer.config
    if isinstance(layer, LlamaLMHead):
        return config.tensor_parallel_degree <= 1 and not config.sequence_parallel
    if isinstance(layer, LlamaRMSNorm):
        return not config.use_fused_rms_norm and not config.sequence_parallel
    return (
        config.tensor_parallel_degree <= 1
        and config.sep_parallel_degree <= 1
        and config.context_parallel_degree <= 1
        and not config.sequence_parallel
        and not config.fuse_attention_qkv
        and not config.use_flash_attention
        and not config.use_long_sequence_strategies
        and bool(config.rope)
        and not config.alibi
    )
