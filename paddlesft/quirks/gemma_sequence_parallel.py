"""PaddleNLP's Gemma divides its embeddings among ranks before it has looked them up.

With ``sequence_parallel`` ``GemmaModel.forward`` (paddlenlp 3.0.0b4) takes the shape of ``inputs_embeds``, which is
None for every caller that gives token ids. Given embeddings, it is right.
"""

from __future__ import annotations

from functools import partial
from typing import Any


def embed_first(model: Any) -> None:
    """Let a Gemma whose ranks share its tokens embed token ids before it divides them."""
    if model.config.sequence_parallel and hasattr(model, "gemma"):  # a pipeline's stage embeds by itself
        model.gemma.forward = partial(_forward, model.gemma, model.gemma.forward)


def _forward(decoder: Any, forward: Any, input_ids: Any = None, **given: Any) -> Any:
    if given.get("inputs_embeds") is None:
        given["inputs_embeds"] = decoder.embed_tokens(input_ids)
    return forward(None, **given)
