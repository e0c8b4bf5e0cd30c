from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddlesft.quirks import qwen_special_tokens
from tests import tiny_tokenizers


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    from paddlenlp.transformers import QWenTokenizer

    tiny_tokenizers.qwen(tmp_path)
    return QWenTokenizer.from_pretrained(str(tmp_path))


def test_upstream_still_declares_no_special_tokens(tokenizer: Any) -> None:
    """When this fails, paddlenlp declares them: remove the quirk and its use in models/tokenizers.py."""
    assert tokenizer.eos_token_id is None and tokenizer.pad_token_id is None


def test_the_end_of_a_document_is_the_end_of_a_sequence(tokenizer: Any) -> None:
    qwen_special_tokens.fix(tokenizer)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", tokenizer.eod_id)
    tokenizer.eos_token = "<|im_end|>"
    qwen_special_tokens.fix(tokenizer)
    assert tokenizer.eos_token == "<|im_end|>"  # a choice that somebody has made stays
