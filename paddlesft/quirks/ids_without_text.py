"""PaddleNLP's slow tokenizers fail on ids behind their vocabulary, where fast ones decode them to nothing.

Upstream symbol: ``PretrainedTokenizer.decode`` of ``GPTTokenizer``, ``QWenTokenizer`` and all SentencePiece kinds (seen
in paddlenlp 3.0.0b4). Embeddings are wider than vocabularies (GPT: 50,304 for 50,257; Qwen: 151,936 for 151,851), so
that sampling can draw such an id; a long run must not end by it.
"""

from __future__ import annotations

from typing import Any


def fix(tokenizer: Any) -> None:
    """Let a slow tokenizer leave such ids out of the text, in place; fast ones stay as they are."""
    if getattr(tokenizer, "is_fast", True):
        return
    decode = tokenizer._decode

    def decode_known(token_ids: list[int], *args: Any, **options: Any) -> str:
        return decode([i for i in token_ids if i < len(tokenizer)], *args, **options)

    tokenizer._decode = decode_known
