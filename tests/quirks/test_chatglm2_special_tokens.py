from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddlesft.quirks import chatglm2_special_tokens
from tests import tiny_tokenizers


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    from paddlenlp.transformers import ChatGLMv2Tokenizer

    tiny_tokenizers.chatglm_v2(tmp_path)
    return ChatGLMv2Tokenizer.from_pretrained(str(tmp_path))


def told(tokenizer: Any, text: str) -> str:
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_upstream_still_finds_tokens_inside_words(tokenizer: Any) -> None:
    """When this fails, paddlenlp reads words as words: remove the quirk and its use in models/tokenizers.py."""
    assert told(tokenizer, "people") != "people"
    assert tokenizer.unk_token_id is None


def test_words_stay_words(tokenizer: Any) -> None:
    chatglm2_special_tokens.fix(tokenizer)
    assert told(tokenizer, "people of the isopod order") == "people of the isopod order"
    assert tokenizer.unk_token_id == 0
