"""``ChatGLMv2Tokenizer`` finds its tokens "sop" and "eop" inside words: "people" loses three letters.

Upstream symbol: ``paddlenlp.transformers.ChatGLMv2Tokenizer`` (seen in paddlenlp 3.0.0b4), whose default
``encode_special_tokens=True`` searches every text for them; the published tokenizer has it off. Templates' own tokens
are found by ``paddlesft.data.encoding``, which leaves these two out. The class also declares no unknown token.
"""

from __future__ import annotations

from typing import Any


def fix(tokenizer: Any) -> None:
    """Let a ChatGLM2 tokenizer read text as text, in place; other tokenizers stay as they are."""
    if hasattr(tokenizer, "encode_special_tokens"):
        tokenizer.encode_special_tokens = False
        if tokenizer.unk_token_id is None:
            tokenizer.unk_token = "<unk>"
