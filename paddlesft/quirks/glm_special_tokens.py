"""GLM's tokenizers do not count the tokens that begin and end a reply among their special tokens.

Upstream symbol: ``paddlenlp.transformers.GLMGPT2Tokenizer`` (seen in paddlenlp 3.0.0b4): what added_tokens.json adds is
plain text to it, so that a message could spell ``[gMASK]`` and decoding would show ``<|endofpiece|>``.
"""

from __future__ import annotations

from typing import Any

TOKENS = ("<|startofpiece|>", "<|endofpiece|>", "[sMASK]", "[gMASK]")


def fix(tokenizer: Any) -> None:
    """Declare GLM's own tokens special, in place; other tokenizers stay as they are."""
    if hasattr(tokenizer, "sop_token") and hasattr(tokenizer, "eop_token"):
        known = [str(token) for token in tokenizer.additional_special_tokens]
        added = [token for token in TOKENS if token in tokenizer.added_tokens_encoder and token not in known]
        tokenizer.additional_special_tokens = [*known, *added]
