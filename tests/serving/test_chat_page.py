"""The chat page without a browser: what it asks of a server, what it keeps, what it shows."""

from __future__ import annotations

import ast
import asyncio
import json
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlesft.data.reading import read_conversations
from paddlesft.errors import ConfigError, DataError
from paddlesft.serving import chat_page
from paddlesft.serving.chat_page.backend import Backend, BackendError, End, ServedName, Text
from paddlesft.serving.chat_page.conversation import Chat, Reply, Turn
from paddlesft.serving.chat_page.display import as_markdown, as_written, problem_text, shown_chat
from paddlesft.serving.chat_page.options import request_options
from paddlesft.serving.chat_page.preferences import PreferenceFile, Votes, line
from paddlesft.serving.chat_page.rows import read_row, row_of
from paddlesft.serving.chat_page.session import Place, Session
from paddlesft.serving.chat_page.texts import LANGUAGES, TEXTS, preferred_language, say
from tests.serving.broken_servers import event, server_that_answers
from tests.serving.running import RunningServer

HELLO = [{"role": "user", "content": "Hello"}]


def said(*replies: str) -> Chat:
    return Chat([Turn(f"q{n}", [Reply(text=text, running=False)]) for n, text in enumerate(replies)])


async def collected(backend: Backend, **options: Any) -> tuple[str, End]:
    pieces = [piece async for piece in backend.reply(None, HELLO, options)]
    assert [type(piece) for piece in pieces] == [Text] * (len(pieces) - 1) + [End]
    return "".join(piece.text for piece in pieces[:-1]), pieces[-1]


def refusal(url: str, asks: Any = collected) -> BackendError:
    with pytest.raises(BackendError) as caught:
        asyncio.run(asks(Backend(url)))
    return caught.value


# ---- the server ----


def test_a_real_server_answers(tiny_server: RunningServer) -> None:
    async def ask() -> None:
        backend = Backend(tiny_server.url + "/v1/")
        (model,) = await backend.models()
        assert model.name == "tiny" and not model.adapter and model.context == 512
        options = request_options(12, 0.8, 0.9, 5, 1.1, 7, "zzz\n\nyyy")
        text, end = await collected(backend, **options)
        again, _ = await collected(backend, **options)
        assert text == again and text
        assert end.finish_reason == "length" and end.tokens == 12 and end.prompt_tokens > 5
        with pytest.raises(BackendError) as caught:
            await collected(backend, max_tokens=100000)
        assert caught.value.kind == "refused" and "max_tokens is 100000" in caught.value.detail
        with pytest.raises(BackendError) as caught:
            [_ async for _ in backend.reply("no-such-model", HELLO, {})]
        assert caught.value.kind == "missing" and "no-such-model" in caught.value.detail

    asyncio.run(ask())


def test_stopping_one_of_two_replies_ends_both_requests(tiny_server: RunningServer) -> None:
    async def ask() -> None:
        place = Place((Chat(), Chat()))
        for chat in place.chats:
            chat.ask("Hello")
        seen = 0
        async for _ in place.answer(Backend(tiny_server.url), [None, None], "", {"max_tokens": 400}):
            seen = max(seen, tiny_server.engine.stats().active)
            if all(len(chat.turns[0].reply.text) > 40 for chat in place.chats):
                place.end()
        tiny_server.wait_until_idle(5)
        assert seen == 2 and not place.running
        for chat in place.chats:
            reply = chat.turns[0].reply
            assert reply.stopped and reply.usable and not reply.counted and reply.tokens < 399

    asyncio.run(ask())


def test_parameters_that_only_some_servers_know_are_sent_when_they_are_used() -> None:
    assert request_options(None, 0.5, 0.9, 0, 1, 0, "") == {"temperature": 0.5, "top_p": 0.9}
    full = request_options(64, 0.0, 1.0, 40, 1.2, 3, "a b\nc")
    assert full == {
        "temperature": 0.0, "top_p": 1.0, "max_tokens": 64, "top_k": 40, "repetition_penalty": 1.2, "seed": 3,
        "stop": ["a b", "c"],
    }  # fmt: skip


def test_replies_of_other_servers() -> None:
    lines_inside = "one\u2028two\x85three"
    usage = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    body = event(lines_inside) + ": ping\n\n" + event("!", "stop") + event(**usage) + "data: [DONE]\n\n"
    with server_that_answers(200, body) as url:
        assert asyncio.run(collected(Backend(url))) == (lines_inside + "!", End("stop", 3, 2))
    with server_that_answers(200, event("Hi", "stop")) as url:  # without [DONE] and usage
        assert asyncio.run(collected(Backend(url))) == ("Hi", End("stop", None, None))


@pytest.mark.parametrize(
    ("status", "body", "kind", "detail"),
    [
        (401, '{"error": {"message": "No API key was sent."}}', "key", "No API key was sent."),
        (404, "<html>", "missing", ""),
        (400, '{"error": "bad top_k"}', "refused", "bad top_k"),
        (429, "{}", "busy", ""),
        (503, '{"error": {"message": "The model is being loaded."}}', "not_ready", "The model is being loaded."),
        (500, '{"error": {"message": 3}}', "failed", ""),
        (200, event("Hi"), "cut_off", ""),
        (200, 'data: {"error": {"message": "out of memory"}}\n\n', "failed", "out of memory"),
        (200, "data: []\n\n", "failed", "an event that is no piece of a reply: []"),
        (200, "data: <html>\n\n", "failed", "an event that is no piece of a reply: <html>"),
    ],
)
def test_each_fault_of_a_server_is_told_apart(status: int, body: str, kind: str, detail: str) -> None:
    with server_that_answers(status, body, Retry_After="7") as url:
        error = refusal(url)
    assert (error.kind, error.detail) == (kind, detail)
    for language in LANGUAGES:
        told = problem_text(error, language, url)
        assert say(language, "try_again") in told and "Traceback" not in told
        if kind == "busy":
            assert say(language, "busy_wait", wait="7") in told


def test_a_server_that_is_not_there_and_addresses_that_are_none() -> None:
    error = refusal("http://127.0.0.1:9")
    assert problem_text(error, "en", "http://127.0.0.1:9") == (
        "The server at http://127.0.0.1:9 cannot be reached. Is it running? Press ↻ to try again."
    )
    with server_that_answers(200, '{"models": []}') as url:
        error = refusal(url, lambda backend: backend.models())
        assert (error.kind, error.detail) == ("failed", "/v1/models holds no list of models")
    for url in ("localhost:8010", "ftp://a", "http://"):
        with pytest.raises(ConfigError, match=r"allowed: an address such as http://127\.0\.0\.1:8010"):
            Backend(url)


def test_the_base_is_compared_with_its_first_adapter() -> None:
    from paddlesft.serving.chat_page.page import base_and_adapter

    both = [ServedName("tuned", True), ServedName("base"), ServedName("other", True)]
    assert base_and_adapter(both) == ("base", "tuned")
    assert base_and_adapter([ServedName("a"), ServedName("b")]) == ("a", "b")
    assert base_and_adapter([ServedName("a")]) == ("a", "a")


# ---- conversations ----


def test_what_the_buttons_do_to_a_conversation() -> None:
    chat = said("a0", "a1")
    assert [m["content"] for m in chat.messages("S", until=1)] == ["S", "q0", "a0", "q1"]
    chat.edit(0, "new")
    assert chat.turns == [Turn("new")] and chat.messages(" ") == []
    broken = chat.begin_reply("m")
    broken.problem, broken.running = BackendError("busy"), False
    assert not chat.has_other_replies and chat.messages("") == []
    for text in ("first", "second"):  # the one that brought nothing made room
        chat.begin_reply("m").text = text
        chat.turns[-1].reply.running = False
    assert [reply.text for reply in chat.turns[-1].replies] == ["first", "second"] and chat.has_other_replies
    chat.show_next_reply()
    assert chat.turns[-1].answer == "first" and chat.undo() == "new" and chat.undo() == ""


def test_a_conversation_is_saved_as_a_training_row_and_loaded_again(tmp_path: Path) -> None:
    chat = said("a\n`0` 你好\u2028", "a1")
    chat.ask("unanswered")
    path = tmp_path / "conversation.jsonl"
    path.write_text(row_of(chat, "Be brief."), encoding="utf-8")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1
    (read,) = read_conversations([path]).usable()
    assert [(m.role, m.content) for m in read.messages] == [
        ("system", "Be brief."), ("user", "q0"), ("assistant", "a\n`0` 你好\u2028"), ("user", "q1"), ("assistant", "a1")
    ]  # fmt: skip
    loaded, system, more = read_row(path)
    assert system == "Be brief." and not more and row_of(loaded, system) == row_of(chat, system)
    assert row_of(Chat([Turn("q")]), "") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "c.jsonl:1  found text that is not JSON"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "field 'messages[0].role': found \"robot\"; allowed:"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "'messages[0]': found the role 'assistant'; allowed"),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}',
            "'messages[1]': found a tool call; allowed: messages of system, user and assistant",
        ),
        ('{"messages": [{"role": "system", "content": "x"}]}', "found no message of the user"),
        ("", "c.jsonl:1  found no rows"),
    ],
)
def test_files_that_hold_no_conversation_are_refused_by_name(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(row, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_row(path)
    assert message in str(caught.value) and str(tmp_path) not in str(caught.value)


# ---- preferences ----


def test_votes_on_replies_to_one_prompt_make_pairs(tmp_path: Path) -> None:
    file = PreferenceFile(tmp_path / "new" / "pairs.jsonl")
    session = Session()
    (chat,) = session.chat.chats
    chat.turns = [Turn("q", [Reply(text="bad", running=False), Reply(text="good", running=False)], shown=0)]
    assert session.vote(chat, 0, "S", False, file) == 0 and not file.path.exists()
    chat.show_next_reply()
    assert session.vote(chat, 0, "S", True, file) == 1
    (row,) = map(json.loads, file.path.read_text(encoding="utf-8").splitlines())
    assert row == {
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}],
        "chosen_response": [{"role": "assistant", "content": "good"}],
        "rejected_response": [{"role": "assistant", "content": "bad"}],
    }
    other = Votes()
    for text, liked in (("x", True), ("y", False)):
        other.set([{"role": "user", "content": "q2"}], text, liked)
    file.update([], other.pairs())
    assert session.vote(chat, 0, "S", None, file) == -1  # a thumb taken back takes its pair back
    assert file.path.read_text(encoding="utf-8") == line(other.pairs()[0]) + "\n"


def test_choosing_a_side_makes_a_pair_from_which_both_go_on() -> None:
    session = Session()
    left, right = session.compare.chats
    assert session.choose(0, "", None) == "no_replies_to_judge"
    left.turns, right.turns = said("L").turns, said("R").turns
    assert session.choose(1, "", None) == "pair_made" and len(session.votes.pairs()) == 1
    assert session.votes.pairs()[0]["chosen_response"][0]["content"] == "R"
    assert left.messages("") == right.messages("") and left.messages("")[-1]["content"] == "R"
    left.turns += said("same").turns
    right.turns += said("same").turns
    assert session.choose(0, "", None) == "same_replies"
    left.turns[0].continues = None
    assert session.choose(0, "", None) == "different_prompts" and len(session.votes.pairs()) == 1


# ---- what is shown ----


def parts_of(reply: Reply, language: str = "en") -> list[dict[str, Any]]:
    messages, turns, thumbs = shown_chat(Chat([Turn("q", [reply])]), language, "http://u", Votes(), "")
    assert turns == [0] * len(messages) and thumbs == [None] * (len(messages) - 1)
    return messages[1:]


def test_figures_and_thoughts_stand_with_the_reply() -> None:
    reply = Reply("m", "<think>hm <b>", first_seconds=0.5)
    (thought,) = parts_of(reply)
    assert thought["metadata"] == {"title": "Thinking", "status": "pending"}
    assert thought["content"][0]["text"] == "hm &lt;b>"
    reply.text += "</think>\n\nyes"
    reply.running, reply.finish_reason = False, "length"
    reply.prompt_tokens, reply.tokens, reply.seconds = 9, 21, 2.5
    thought, answer = parts_of(reply)
    assert thought["metadata"]["status"] == "done" and answer["content"][0]["text"] == "yes"
    told = "longest reply reached · 21 tokens · 10.0 tokens/s · first after 0.50 s · prompt 9 tokens"
    assert told in answer["content"][1]["value"]
    assert "已达最大长度 · 21 token · 10.0 token/秒" in parts_of(reply, "zh")[1]["content"][1]["value"]
    assert parts_of(Reply(running=False))[0]["content"][0]["text"] == "(The model said nothing.)"
    broken = Reply(running=False, problem=BackendError("refused", "<script>alert(1)</script>"))
    assert "&lt;script&gt;" in parts_of(broken)[0]["content"][0]["value"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>x</script> 1 < 2 &lt;", "&lt;script>x&lt;/script> 1 < 2 &amp;lt;"),
        ("![x](http://a/b.png)", "&#33;[x](http://a/b.png)"),
        ("`<b>` <b> ``<i>`` ` <u>", "`<b>` &lt;b> ``<i>`` ` &lt;u>"),
        ("```html\n<b>\n```\n<b>\n~~~\n<i>", "```html\n<b>\n```\n&lt;b>\n~~~\n<i>"),
    ],
)
def test_html_is_shown_not_obeyed(text: str, shown: str) -> None:
    assert as_markdown(text) == shown


@given(st.text(alphabet=string.ascii_lowercase + "<>&;!#[]`~\n/ 3lt", max_size=60))
def test_what_is_edited_is_what_was_written(text: str) -> None:
    assert as_written(as_markdown(text)) == text


def test_every_text_is_there_in_both_languages_and_used() -> None:
    for key, texts in TEXTS.items():
        fields = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in texts]
        assert all(texts) and fields[0] == fields[1], key
    sources = "".join(p.read_text(encoding="utf-8") for p in Path(chat_page.__file__).parent.glob("*.py"))
    words = {node.value for node in ast.walk(ast.parse(sources.replace("from __future__ import annotations", "")))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # fmt: skip
    explained = {f"{word}_info" for word in words}
    assert set(TEXTS) <= words | explained
    wishes = {"zh-CN,zh;q=0.9,en;q=0.8": "zh", "de,en;q=0.5,zh;q=0.7": "zh", "fr": "en", "": "en", "en;q=x": "en"}
    assert {wish: preferred_language(wish) for wish in wishes} == wishes


def test_the_page_needs_no_paddle() -> None:
    heavy = "{'paddle', 'paddlenlp', 'flask', 'waitress'}"
    code = f"import sys, paddlesft.cli.chat_page, paddlesft.serving.chat_page.server; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr
