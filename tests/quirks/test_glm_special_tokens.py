from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddlesft.quirks import glm_special_tokens
from tests import tiny_tokenizers


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    from paddlenlp.transformers import GLMGPT2Tokenizer

    tiny_tokenizers.glm_gpt2(tmp_path)
    return GLMGPT2Tokenizer.from_pretrained(str(tmp_path))


def test_upstream_still_does_not_count_the_marks_of_a_reply(tokenizer: Any) -> None:
    """When this fails, paddlenlp declares them: remove the quirk and its use in models/tokenizers.py."""
    assert tokenizer.eop_token not in tokenizer.all_special_tokens


def test_the_marks_of_a_reply_are_special(tokenizer: Any) -> None:
    glm_special_tokens.fix(tokenizer)
    glm_special_tokens.fix(tokenizer)
    assert tokenizer.additional_special_tokens == list(glm_special_tokens.TOKENS)
    ids = [*tokenizer("Hello", add_special_tokens=False)["input_ids"], tokenizer.eop_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hello"
