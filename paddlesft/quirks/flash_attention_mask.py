"""With ``use_flash_attention: true`` PaddleNLP's LLaMA and Qwen2 lose their masks, without an error.

Seen with paddlenlp 3.0.0b4 and paddlepaddle 3.3.1, in two places of ``transformers/llama`` that Qwen2 shares or copies:
``fusion_ops.fusion_flash_attention`` calls ``scaled_dot_product_attention`` with ``attn_mask`` and ``is_causal=True``,
and the mask is left out then: padding on the left is attended to, packed conversations see each other.
``modeling.is_casual_mask`` takes every mask of a single query, and masks over a prefix, for a plain causal one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def keep_mask(model: Any) -> None:
    """Let the attention of these models follow the masks it is given; ``model`` itself is left as it is."""
    from paddlenlp.transformers.llama import fusion_ops
    from paddlenlp.transformers.llama import modeling as llama
    from paddlenlp.transformers.qwen2 import modeling as qwen2

    for module, name, mend in (
        (fusion_ops, "no_recompute", _by_the_mask),
        (llama, "is_casual_mask", _square),
        (qwen2, "is_casual_mask", _square),
    ):
        if not hasattr(getattr(module, name), "original"):
            mended = mend(getattr(module, name))
            mended.original = getattr(module, name)
            setattr(module, name, mended)


def _by_the_mask(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what fusion_ops calls its attention functions through: PaddleNLP's masks are causal themselves."""

    def called(function: Any, *tensors: Any, **options: Any) -> Any:
        if options.get("attn_mask") is not None:
            options["is_causal"] = False
        return call(function, *tensors, **options)

    return called


def _square(is_causal: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Wrap the question whether a mask [b, 1, s, k] can be left out: only if it has as many queries as keys."""
    return lambda mask: mask.shape[-2] == mask.shape[-1] and is_causal(mask)
