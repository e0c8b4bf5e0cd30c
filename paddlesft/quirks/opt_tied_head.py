"""PaddleNLP's OPT has an output head of its own although OPT shares it with the token embedding.

A checkpoint without a second copy of the embedding then computes with random numbers, training pulls the two apart,
and models whose embeddings have another width than their layers (OPT-350M) fail, because the head has the layers'.
Seen with paddlenlp 3.0.0b4 (``OPTForCausalLM.__init__`` gives ``OPTLMHead`` no embedding).
"""

from __future__ import annotations

from typing import Any


def tie_head(model: Any) -> None:
    """Make the head of a model the embedding, unless its config says ``tie_word_embeddings: false``."""
    if model.config.tie_word_embeddings:
        model.lm_head.decoder_weight = model.opt.embeddings.word_embeddings.weight
