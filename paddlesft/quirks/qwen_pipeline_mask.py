"""PaddleNLP's pipeline class of Qwen 1 calls a function for its mask that Qwen 1 has never had.

Seen with paddlenlp 3.0.0b4: ``QWenEmbeddingPipe.forward`` asks for ``QWenModel._prepare_decoder_attention_mask``, which
Llama and others have; a pipeline that is given a mask stops with an AttributeError.
"""

from __future__ import annotations

from typing import Any


def offer_mask(model: Any) -> None:
    """Give Qwen 1 the function; ``model`` itself is left as it is."""
    from paddlenlp.transformers.qwen.modeling import QWenModel

    if not hasattr(QWenModel, "_prepare_decoder_attention_mask"):
        QWenModel._prepare_decoder_attention_mask = staticmethod(_additive)


def _additive(mask: Any, shape: Any, past: int, dtype: Any) -> Any:
    """Turn a bool mask [b, 1, s, s], causal already, into what is added to attention scores."""
    import paddle

    return paddle.where(mask, 0.0, paddle.finfo(dtype).min).astype(dtype)
