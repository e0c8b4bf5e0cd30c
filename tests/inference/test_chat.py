"""A conversation held in Python: history, taking back, asking again, stopping."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.inference import chat
from paddlesft.inference.chat import ChatSession
from paddlesft.inference.loading import Loaded, load_for_inference
from paddlesft.inference.sampling import SamplingOptions

OPTIONS = SamplingOptions(max_new_tokens=6, min_new_tokens=6, decode_strategy="sampling", seed=1)


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> Loaded:
    return load_for_inference(tiny_llama)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> list[str]:
    """The text of each prompt that the model gets."""
    seen: list[str] = []
    generate = chat.generate

    def spy(model: object, ids: list[list[int]], *args: object, **kwargs: object) -> object:
        seen.append(loaded.tokenizer.decode(ids[0]))
        return generate(model, ids, *args, **kwargs)

    monkeypatch.setattr(chat, "generate", spy)
    return seen


def roles(session: ChatSession) -> list[str]:
    return [message.role for message in session.messages]


def test_the_model_sees_the_whole_conversation(loaded: Loaded, prompts: list[str]) -> None:
    session = ChatSession(loaded, OPTIONS, system="Be kind.")
    pieces: list[str] = []
    first = session.ask("你好", pieces.append)
    assert "".join(pieces) == first.text != ""
    assert (first.num_tokens, first.finish_reason) == (6, "length")
    assert first.seconds >= first.first_seconds > 0 and first.rate > 0
    session.ask("And now?")
    assert prompts[1] == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
        f"<|im_start|>assistant\n{first.text}<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )
    row = session.as_training_row()
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert row["messages"][2]["content"] == first.text


def test_without_history_every_message_is_the_first(loaded: Loaded, prompts: list[str]) -> None:
    session = ChatSession(loaded, OPTIONS, keep_history=False)
    session.ask("one")
    session.ask("two")
    assert "one" not in prompts[1] and "two" in prompts[1]


def test_retry_draws_anew_and_undo_takes_back(loaded: Loaded, prompts: list[str]) -> None:
    session = ChatSession(loaded, OPTIONS)
    assert session.retry() is None and session.undo() is None
    first = session.ask("hello")
    second = session.retry()
    assert prompts[0] == prompts[1]
    assert second.text != first.text
    assert roles(session) == ["user", "assistant"]
    assert session.messages[-1].content == second.text
    assert session.undo() == "hello"
    assert session.messages == []
    session.ask("x")
    session.clear()
    assert session.messages == []


def test_a_stopped_reply_stays_as_far_as_it_came(loaded: Loaded) -> None:
    session = ChatSession(loaded, OPTIONS)
    pieces: list[str] = []
    reply = session.ask("hello", pieces.append, should_stop=lambda: len(pieces) == 2)
    assert reply.finish_reason == "interrupted"
    assert reply.num_tokens < 6
    assert session.messages[-1].content == reply.text == "".join(pieces)


def test_a_reply_stopped_before_any_text_leaves_no_trace(loaded: Loaded) -> None:
    session = ChatSession(loaded, OPTIONS)
    first = session.ask("hello")
    assert first.text

    def nothing(*args: object, on_token: object, **kwargs: object) -> None:
        raise chat._Stopped

    before = list(session.messages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "generate", nothing)
        assert session.ask("again").text == ""
        assert session.messages == before
        assert session.retry().finish_reason == "interrupted"
        assert session.messages == before


def test_an_error_leaves_the_conversation_as_it_was(loaded: Loaded) -> None:
    session = ChatSession(loaded, OPTIONS)
    session.ask("hello")
    before = list(session.messages)

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "generate", fail)
        for call in (lambda: session.ask("again"), session.retry):
            with pytest.raises(KeyboardInterrupt):
                call()
            assert session.messages == before


def test_rounds_that_do_not_fit_are_left_out_and_counted(loaded: Loaded, prompts: list[str]) -> None:
    session = ChatSession(loaded, OPTIONS, src_length=60)
    session.ask("the first message")
    session.ask("the second message")
    reply = session.ask("the third message")
    assert reply.dropped_rounds >= 1
    assert "first" not in prompts[2] and "third" in prompts[2]
    assert reply.prompt_tokens <= 60
    assert session.ask("word " * 100).cut_tokens > 0
