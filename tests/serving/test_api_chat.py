"""``/api/chat``: upstream's fields, codes and lines, and that the conversation is really used."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.serving.running import RunningServer

ROUNDS = ["What is one and one?", "Two."]


def ask(server: RunningServer, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/api/chat", json={"context": "And more?", "top_k": 1, "max_length": 6} | body)


def utterance(answer: httpx.Response) -> str:
    content = answer.json()
    assert answer.status_code == 200, content
    assert content["error_code"] == 0 and content["error_msg"] == "Success"
    assert content["result"]["response"]["role"] == "bot" and set(content["result"]) == {"response"}
    return content["result"]["response"]["utterance"]


def openai(server: RunningServer, *turns: str, **body: Any) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={"messages": messages, "max_tokens": 6, "temperature": 0, **body},
    )
    return answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "history",
    [
        ROUNDS,
        [{"utterance": text} for text in ROUNDS],
        [{"role": role, "utterance": text} for role, text in zip(("user", "bot"), ROUNDS)],
        json.dumps([{"role": "user", "utterance": ROUNDS[0]}, ROUNDS[1]]),
    ],
)
def test_every_form_of_history_is_the_conversation(tiny_server: RunningServer, history: Any) -> None:
    expected = openai(tiny_server, *ROUNDS, "And more?")
    assert utterance(ask(tiny_server, history=history, extra_info={"any": [1]})) == expected
    assert expected != openai(tiny_server, "And more?") == utterance(ask(tiny_server))


def test_the_lines_of_a_stream_are_the_reply_in_pieces(tiny_server: RunningServer) -> None:
    whole = utterance(ask(tiny_server, max_length=12))
    answer = ask(tiny_server, max_length=12.0, stream=True)  # sliders send numbers with a point
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["Content-Type"].startswith("application/x-ndjson") and len(lines) > 3
    assert all(line["error_code"] == 0 and line["result"]["response"]["role"] == "bot" for line in lines)
    assert "".join(line["result"]["response"]["utterance"] for line in lines) == whole


def test_lengths_count_new_tokens_and_sampling_has_a_seed(tiny_server: RunningServer) -> None:
    drawn = {"top_k": 0, "temperature": 1.5, "top_p": 1.0, "repetition_penalty": 1.2}
    first, again, other = (utterance(ask(tiny_server, **drawn, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    before = tiny_server.engine.stats().generated_tokens
    ask(tiny_server, max_length=9, min_length=9)
    assert tiny_server.engine.stats().generated_tokens - before == 9


def test_src_length_leaves_the_oldest_rounds_out(tiny_server: RunningServer) -> None:
    short = utterance(ask(tiny_server))
    long = ["word " * 200, "Yes."]
    assert (
        utterance(ask(tiny_server, history=long, src_length=60)) == short != utterance(ask(tiny_server, history=long))
    )


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"context": "a " * 600}, 400, 1, "The prompt has "),
        ({"src_length": 509, "max_length": 6}, 400, 1, "The sum of src_length (509) and max_length (6) is more than"),
        ({"max_length": 99999}, 400, 1, "max_length is 99999; replies have at most 2048 tokens here."),
        ({"min_length": 7}, 400, 1000, "Generation options are wrong:"),
        ({"context": ""}, 400, 1000, "context: "),
        ({"context": 5}, 400, 1000, "context: "),
        ({"top_p": 1.5}, 400, 1000, "top_p: "),
        ({"top_k": 1.5}, 400, 1000, "top_k: "),
        ({"top_k": "1"}, 400, 1000, "top_k: "),
        ({"max_len": 5}, 400, 1000, "max_len is not known. Did you mean max_length?"),
        ({"model": "other"}, 404, 1000, "There is no model 'other' here. Served: tiny."),
        ({"history": [{"role": "cat", "utterance": "x"}]}, 400, 1000, "history[0].role is 'cat'; allowed: user, human"),
        ({"history": [{"content": "x"}]}, 400, 1000, "history[0]"),
        ({"history": ["x"] * 1001}, 400, 1000, "history has 1001 turns; at most 1000 are taken."),
    ],
)
def test_errors_have_upstreams_codes_and_openais_shape(
    tiny_server: RunningServer, body: dict[str, Any], status: int, code: int, message: str
) -> None:
    answer = ask(tiny_server, **body)
    content = answer.json()
    assert (answer.status_code, content["error_code"], content["result"]) == (status, code, None), content
    assert content["error_msg"].startswith(message), content["error_msg"]
    assert content["error"]["message"] == content["error_msg"]
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert content["error"]["param"] not in ("messages", "prompt")


def test_errors_before_the_route_have_them_too(tiny_server: RunningServer) -> None:
    url = f"{tiny_server.url}/api/chat"
    answers = [
        httpx.get(url),
        httpx.post(url, content=b"{", headers={"Content-Type": "application/json"}),
        httpx.post(url, content=b"context=hi"),
        httpx.post(url, content=b"x" * (1 << 20) + b"x"),
    ]
    assert [answer.status_code for answer in answers] == [405, 400, 415, 413]
    for answer in answers:
        content = answer.json()
        assert content["error_code"] == 1000 and content["error_msg"] == content["error"]["message"]
