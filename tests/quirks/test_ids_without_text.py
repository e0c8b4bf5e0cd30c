from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddlesft.quirks import ids_without_text
from tests import tiny_tokenizers


@pytest.fixture(params=["GPTTokenizer", "QWenTokenizer", "LlamaTokenizer"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    import paddlenlp.transformers as zoo

    kind = {"GPTTokenizer": "gpt2", "QWenTokenizer": "qwen", "LlamaTokenizer": "llama"}[request.param]
    tiny_tokenizers.KINDS[kind](tmp_path)
    known = {"vocab_file": str(tmp_path / "tokenizer.model")} if kind == "llama" else {}
    return getattr(zoo, request.param).from_pretrained(str(tmp_path), **known)


def test_upstream_still_fails(tokenizer: Any) -> None:
    """When this fails for every class, paddlenlp decodes them: remove the quirk and its use in models/tokenizers.py."""
    with pytest.raises((KeyError, IndexError, ValueError)):
        tokenizer.decode([len(tokenizer) + 1])


def test_such_ids_leave_no_text(tokenizer: Any) -> None:
    ids = tokenizer("Hello", add_special_tokens=False)["input_ids"]
    ids_without_text.fix(tokenizer)
    assert tokenizer.decode([*ids, len(tokenizer), len(tokenizer) + 99]) == "Hello"
