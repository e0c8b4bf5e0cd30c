"""Tokenizers and small data files for the tests of the data room."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.tokenizers_for_tests import gpt2_bpe, sentencepiece_llama

TOKENIZERS = ("smollm2", "sentencepiece", "gpt2")


@pytest.fixture(scope="session")
def tokenizers(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A fast byte-level one with ChatML tokens, a slow SentencePiece one, a slow byte-level one."""
    from paddlesft.models import load_tokenizer

    return {
        "smollm2": load_tokenizer(smollm2),
        "sentencepiece": sentencepiece_llama(tmp_path_factory.mktemp("sentencepiece")),
        "gpt2": gpt2_bpe(tmp_path_factory.mktemp("gpt2")),
    }


@pytest.fixture(scope="session")
def renderer(tokenizers: dict[str, Any]) -> Any:
    """SmolLM2's tokenizer with its own template."""
    from paddlesft.data.rendering import Renderer
    from paddlesft.data.templates import load_template

    return Renderer(tokenizers["smollm2"], load_template(tokenizers["smollm2"]))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of rows: ``write("a.jsonl", rows)`` or ``write("a.json", text)``."""

    def make(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
            return path
        if not isinstance(content, str):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path.write_text(content, encoding="utf-8")
        return path

    return make
