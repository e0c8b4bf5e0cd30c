"""Pieces of text to ids: no spaces that nobody wrote, no special token spelled in letters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paddlesft.data.conversation import Conversation
from paddlesft.data.encoding import TextEncoder, added_token_ids, special_token_ids
from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import load_template
from paddlesft.models import load_tokenizer
from tests.data.tokenizers_for_tests import exact_text, qwen2_slow

PIECES = ["Hello there", " Hello", "\nHi", "\n\n", "你好🙂", "x  y", "]", "0", "> .", "|"]


@pytest.mark.parametrize("name", ["smollm2", "sentencepiece", "gpt2"])
def test_pieces_encoded_apart_make_the_whole_text(tokenizers: dict[str, Any], name: str) -> None:
    tokenizer = tokenizers[name]
    encoder = TextEncoder(tokenizer)
    for piece in PIECES:
        ids = encoder.encode("Q:") + encoder.encode_behind(piece) + encoder.encode_behind("end")
        assert exact_text(tokenizer, ids).removeprefix(" ") == "Q:" + piece + "end"


def test_sentencepiece_without_an_anchor_would_add_a_space(tokenizers: dict[str, Any]) -> None:
    encoder = TextEncoder(tokenizers["sentencepiece"])
    assert exact_text(tokenizers["sentencepiece"], encoder.encode("Hello")) == " Hello"
    assert exact_text(tokenizers["sentencepiece"], encoder.encode_behind("Hello")) == "Hello"


def test_special_tokens_put_before_a_text(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    encoder = TextEncoder(tokenizer)
    assert encoder.encode_with_special_tokens("Hello") == tokenizer("Hello")["input_ids"]
    assert encoder.encode_with_special_tokens("a</s>b")[0] == tokenizer.bos_token_id
    assert encoder.encode_with_special_tokens("a</s>b").count(tokenizer.eos_token_id) == 1
    assert (
        TextEncoder(tokenizers["smollm2"]).encode_with_special_tokens("Hi") == tokenizers["smollm2"]("Hi")["input_ids"]
    )


def test_padding_falls_back_to_end_of_sequence(tokenizers: dict[str, Any]) -> None:
    encoder = TextEncoder(tokenizers["sentencepiece"])
    assert tokenizers["sentencepiece"].pad_token_id is None
    assert encoder.pad_token_id == encoder.eos_token_id == 2
    assert encoder.eos_text == "</s>"


def test_added_tokens_of_a_slow_qwen_tokenizer(tmp_path: Path) -> None:
    tokenizer = qwen2_slow(tmp_path)
    spelled = tokenizer("<think>", add_special_tokens=False)["input_ids"]
    assert len(spelled) > 1, "if this fails paddlenlp finds added tokens in slow tokenizers; encoding.py can be simpler"
    assert special_token_ids(tokenizer) == {"<|endoftext|>": 600, "<|im_start|>": 601, "<|im_end|>": 602}
    assert added_token_ids(tokenizer)["</think>"] == 604
    encoder = TextEncoder(tokenizer)
    line = encoder.encode("\n")
    assert encoder.encode("<think>\n</think>") == [603, *line, 604]
    renderer = Renderer(tokenizer, load_template(tokenizer, "chatml"))
    rendered = renderer.render(
        Conversation.of([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    )
    between = [602, *line, 601]
    assert any(rendered.input_ids[i : i + len(between)] == between for i in range(len(rendered.input_ids)))
    assert rendered.input_ids[-1] == 602 and renderer.stop_token_ids == [602]


@pytest.mark.parametrize("family", ["chatglm", "chatglm_v2", "glm", "llama", "qwen"])
def test_special_tokens_are_decoded_as_they_are_written(family: str, tiny_family: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(tiny_family(family))
    encoder = TextEncoder(tokenizer)
    for text, index in encoder.special_ids.items():
        assert text in encoder.decode([index])
        assert text in encoder.decode([*encoder.encode("Hello"), index, *encoder.encode("there")])


def test_the_marks_of_chatglm_stay_where_they_stand(tiny_family: Callable[[str], Path]) -> None:
    encoder = TextEncoder(load_tokenizer(tiny_family("chatglm")))
    ids = [*encoder.encode_with_special_tokens("Hello there"), *encoder.encode("Hi"), encoder.eos_token_id]
    assert encoder.decode(ids) == "Hello there[gMASK]<sop>Hi<eop>"
