"""``ChatGLMTokenizer`` decodes nothing but "<image_...>" where its vocabulary begins with image tokens.

Upstream symbol: ``paddlenlp.transformers.ChatGLMTokenizer._decode`` (seen in paddlenlp 3.0.0b4), which takes
``num_image_tokens`` from every id although ``_convert_id_to_token`` does so again. The first ChatGLM-6B has 20,000 of
them, later revisions none.
"""

from __future__ import annotations

from typing import Any


def fix(tokenizer: Any) -> None:
    """Let such a tokenizer leave image tokens out and decode the others, in place; others stay as they are."""
    images = getattr(tokenizer, "num_image_tokens", 0)
    if not images:
        return
    decode = tokenizer._decode

    def decode_text(token_ids: list[int], *args: Any, **options: Any) -> str:
        # both take the number away; what is added here leaves one of the two
        return decode([int(i) + images for i in token_ids if int(i) >= images], *args, **options)

    tokenizer._decode = decode_text
