from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddlesft.models import load_tokenizer
from paddlesft.quirks import chatglm_image_tokens
from tests import tiny_tokenizers

IMAGES = 20
TEXT = "你好，Hello there\n\n  user"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_tokenizers.chatglm(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_image_tokens": IMAGES}))
    return tmp_path


def test_upstream_still_decodes_images_only(directory: Path) -> None:
    """When this fails, paddlenlp decodes texts: remove the quirk and its use in models/tokenizers.py."""
    from paddlenlp.transformers import ChatGLMTokenizer

    tokenizer = ChatGLMTokenizer.from_pretrained(str(directory))
    assert tokenizer.decode(tokenizer(TEXT, add_special_tokens=False)["input_ids"]) != TEXT


def test_texts_are_decoded_and_images_left_out(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert min(ids) >= IMAGES
    assert tokenizer.decode([3, *ids, 7]) == TEXT
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == TEXT


def test_a_vocabulary_without_images_stays_as_it_is(tmp_path: Path) -> None:
    class Text:
        num_image_tokens = 0

    tokenizer: Any = Text()
    chatglm_image_tokens.fix(tokenizer)
    assert vars(tokenizer) == {}
