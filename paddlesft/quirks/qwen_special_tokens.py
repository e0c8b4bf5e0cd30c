"""``QWenTokenizer`` declares none of its special tokens: no end-of-sequence, no padding (seen in paddlenlp 3.0.0b4).

Upstream symbol: ``paddlenlp.transformers.QWenTokenizer``. It knows ``<|endoftext|>`` only as ``eod_id``, so that
templates and padding, which ask for ``eos_token``, find nothing.
"""

from __future__ import annotations

from typing import Any


def fix(tokenizer: Any) -> None:
    """Declare the end of a document as the end-of-sequence token, in place; other tokenizers stay as they are."""
    end_of_document = getattr(tokenizer, "eod_id", None)
    if end_of_document is not None and tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_of_document)
