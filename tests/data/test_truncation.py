"""Over-long rows: PaddleNLP's way by default, and everything that is lost is counted."""

from __future__ import annotations

from typing import Any

import pytest

from paddlesft.data.conversation import Conversation
from paddlesft.data.problems import RowProblem
from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import load_template
from paddlesft.data.truncation import fit


def conversation(*texts: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return Conversation.of(([{"role": "system", "content": system}] if system else []) + messages)


def words(number: int) -> str:
    return " a" * number


@pytest.fixture(scope="module")
def plain(tokenizers: dict[str, Any]) -> Renderer:
    return Renderer(tokenizers["smollm2"], load_template(tokenizers["smollm2"], "plain"))


@pytest.fixture(scope="module")
def chatml(tokenizers: dict[str, Any]) -> Renderer:
    return Renderer(tokenizers["smollm2"], load_template(tokenizers["smollm2"], "chatml"))


@pytest.mark.parametrize(("prompt", "reply", "src_length", "max_length"), [
    (5, 3, 10, 20), (15, 3, 10, 20), (5, 30, 10, 20), (15, 30, 10, 20), (10, 9, 10, 20), (10, 10, 10, 20),
    (3, 30, 50, 20),
])  # fmt: skip
def test_single_replies_are_cut_as_paddlenlp_cuts_them(
    plain: Renderer, prompt: int, reply: int, src_length: int, max_length: int
) -> None:
    tokenizer = plain.tokenizer
    source_text, target_text = "x" + words(prompt - 1), "y" + words(reply - 1)
    # the formula of PaddleNLP's llm data code, written out
    source = tokenizer(source_text)["input_ids"][-src_length:]
    target = tokenizer(target_text)["input_ids"]
    room = max_length - len(source)
    expected = target[:room] + ([tokenizer.eos_token_id] if len(target) < room else [])

    row = plain.render(conversation(source_text, target_text))
    fitted = fit(row, plain, "truncate_left_prompt", src_length, max_length)
    assert fitted.row is not None
    assert fitted.row.input_ids == source + expected
    assert fitted.row.trained == [False] * len(source) + [True] * len(expected)
    assert fitted.prompt_tokens_lost == prompt - len(source)
    assert fitted.reply_tokens_lost == reply + 1 - len(expected)
    assert fitted.truncated == (len(fitted.row.input_ids) < prompt + reply + 1)


def test_a_begin_of_sequence_token_stays_when_the_prompt_is_cut(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    renderer = Renderer(tokenizer, load_template(tokenizer, "plain"))
    row = renderer.render(conversation("Hello there. " * 20, "Hello"))
    cut = fit(row, renderer, "truncate_left_prompt", 8, 100).row
    assert cut is not None and cut.first_reply == 8
    assert cut.input_ids[0] == tokenizer.bos_token_id
    assert cut.input_ids[1:] == row.input_ids[row.first_reply - 7 :]


def test_with_a_template_a_prompt_is_cut_only_when_the_row_is_too_long(chatml: Renderer) -> None:
    row = chatml.render(conversation("q" + words(30), "r"))
    length = len(row.input_ids)
    kept = fit(row, chatml, "truncate_left_prompt", 10, length)
    assert kept.row == row and not kept.truncated
    cut = fit(row, chatml, "truncate_left_prompt", 10, length - 1)
    assert cut.row is not None and cut.row.input_ids == row.input_ids[row.first_reply - 10 :]
    assert (cut.prompt_tokens_lost, cut.reply_tokens_lost) == (row.first_reply - 10, 0)


def test_oldest_rounds_go_first_and_the_system_message_stays(chatml: Renderer) -> None:
    long = conversation("one" + words(20), "1", "two" + words(20), "2", "three", "3", system="Be kind.")
    row = chatml.render(long)
    fitted = fit(row, chatml, "truncate_left_prompt", 1024, 60)
    expected = chatml.render(conversation("two" + words(20), "2", "three", "3", system="Be kind."))
    assert fitted.row is not None
    assert fitted.row.input_ids == expected.input_ids
    assert fitted.reply_tokens_lost == len(chatml.encoder.encode("1<|im_end|>"))
    assert fitted.prompt_tokens_lost == len(row.input_ids) - len(expected.input_ids) - fitted.reply_tokens_lost
    # a conversation that fits is left alone, whatever src_length says
    assert fit(row, chatml, "truncate_left_prompt", 5, 1024).row == row
    # the last round is cut like a single reply
    last = fit(row, chatml, "truncate_left_prompt", 4, 6).row
    assert last is not None and len(last.input_ids) == 6 and last.first_reply == 4


def test_truncate_right_and_drop(chatml: Renderer) -> None:
    row = chatml.render(conversation("q", "r" + words(20)))
    length = len(row.input_ids)
    fitted = fit(row, chatml, "truncate_right", 1024, length - 5)
    assert fitted.row is not None and fitted.row.input_ids == row.input_ids[:-5]
    assert (fitted.truncated, fitted.prompt_tokens_lost, fitted.reply_tokens_lost) == (True, 0, 5)
    dropped = fit(row, chatml, "drop", 1024, length - 1)
    assert dropped.row is None
    assert dropped.reply_tokens_lost + dropped.prompt_tokens_lost == length
    for policy in ("drop", "error", "truncate_right", "truncate_left_prompt"):
        assert fit(row, chatml, policy, 1024, length).row == row


def test_messages(chatml: Renderer) -> None:
    row = chatml.render(conversation("q" + words(20), "r"))
    with pytest.raises(
        RowProblem, match=f"found {len(row.input_ids)} tokens; allowed: at most max_length=12; raise it"
    ):
        fit(row, chatml, "error", 1024, 12)
    for policy in ("truncate_right", "truncate_left_prompt"):
        with pytest.raises(
            RowProblem, match="prompt tokens, which leave no room for the reply; allowed: a prompt shorter"
        ):
            fit(row, chatml, policy, 1024, 12)
    with pytest.raises(ValueError, match="unknown truncation policy 'middle'"):
        fit(row, chatml, "middle", 10, 12)
