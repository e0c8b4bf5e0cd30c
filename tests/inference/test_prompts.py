"""Prompts of bounded length."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.data.conversation import Conversation
from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import load_template
from paddlesft.inference.prompts import fit_prompt, prompt_limit
from paddlesft.models import load_tokenizer


@pytest.fixture(scope="module")
def renderer(tiny_llama: Path) -> Renderer:
    tokenizer = load_tokenizer(tiny_llama)
    return Renderer(tokenizer, load_template(tokenizer, "chatml"))


def conversation(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return Conversation.of([{"role": "system", "content": "Rules."}, *turns])


def test_the_oldest_rounds_go_first_and_the_system_message_stays(renderer: Renderer) -> None:
    long = conversation("first", "answer", "second", "answer", "third")
    whole = renderer.render_prompt(long.messages)
    assert fit_prompt(renderer, long, len(whole)).ids == whole
    fitted = fit_prompt(renderer, long, len(whole) - 1)
    assert (fitted.dropped_rounds, fitted.cut_tokens, fitted.shortened) == (1, 0, True)
    assert fitted.ids == renderer.render_prompt(conversation("second", "answer", "third").messages)


def test_a_single_message_that_is_too_long_is_cut_on_the_left(renderer: Renderer) -> None:
    one = conversation("first", "answer", "word " * 50)
    fitted = fit_prompt(renderer, one, 20)
    whole = renderer.render_prompt(conversation("word " * 50).messages)
    assert fitted.ids == whole[-20:]
    assert (fitted.dropped_rounds, fitted.cut_tokens) == (1, len(whole) - 20)


def test_what_stands_before_every_text_stays_at_the_beginning() -> None:
    class WithOpening:
        class encoder:
            @staticmethod
            def opening_length(ids: list[int]) -> int:
                return 2

        def render_prompt(self, messages: object, tools: object) -> list[int]:
            return [1, 2, *range(10, 20)]

    assert fit_prompt(WithOpening(), conversation("x"), 4).ids == [1, 2, 18, 19]
    assert fit_prompt(WithOpening(), conversation("x"), 2).ids == [1, 19], "the last token is the newest"


@pytest.mark.parametrize(
    ("src_length", "max_new_tokens", "context", "limit"),
    [(1024, 1024, None, 1024), (1024, 1024, 8192, 1024), (1024, 128, 512, 384), (1024, 1024, 512, 256), (9, 9, 1, 1)],
)
def test_the_reply_gets_its_room(src_length: int, max_new_tokens: int, context: int | None, limit: int) -> None:
    assert prompt_limit(src_length, max_new_tokens, context) == limit
