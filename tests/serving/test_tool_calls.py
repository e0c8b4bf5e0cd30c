"""Calls of tools in replies: however the text is cut, the same calls and the same text come out."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlesft.inference.engine_requests import Finished, Piece
from paddlesft.serving.chat_completions import ChatCompletionRequest, _Stream
from paddlesft.serving.tool_calls import ToolCallReader
from tests.serving.running import RunningServer

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "北京"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def read(pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    reader = ToolCallReader()
    text = "".join(reader.push(piece)[0] for piece in pieces) + reader.finish()
    return text, [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in reader.calls]


@pytest.mark.parametrize(
    ("text", "left", "names"),
    [
        (CALL, "", ["look"]),
        (f"Let me see. {CALL}\n{CALL}", "Let me see. ", ["look", "look"]),
        ("No call < here <tool", "No call < here <tool", []),
        ("<tool_call>\nlook(at)\n</tool_call> done", "<tool_call>\nlook(at)\n</tool_call> done", []),
        ('<tool_call>[{"name": "x"}]</tool_call>', '<tool_call>[{"name": "x"}]</tool_call>', []),
        ('<tool_call>{"name": "look"', '<tool_call>{"name": "look"', []),
        ('<tool_call>{"name": "ping"}</tool_call>', "", ["ping"]),
    ],
)
def test_calls_are_taken_out_of_the_text(text: str, left: str, names: list[str]) -> None:
    found, calls = read([text])
    assert (found, [name for name, _ in calls]) == (left, names)
    if names == ["look"]:
        assert calls[0][1] == {"at": "北京"}


@given(st.lists(st.integers(0, 120), max_size=8))
def test_where_a_stream_is_cut_changes_nothing(places: list[int]) -> None:
    text = f"First. {CALL} and <tool> or {CALL} <tool_"
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    assert read([text[a:b] for a, b in pairwise(edges)]) == read([text])


def test_a_stream_shows_calls_as_openai_does(tiny_server: RunningServer) -> None:
    asked = ChatCompletionRequest.read({"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]})
    stream = _Stream({"id": "1"}, asked, tiny_server.service.models.default, 1, tools=True)
    text = f"Well, {CALL}{CALL}"
    chunks = [chunk for start in range(0, len(text), 7) for chunk in stream.chunks(0, Piece(text[start : start + 7]))]
    chunks += stream.chunks(0, Finished("stop", text, 3))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "Well, "
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "look"), (1, "look")]
    assert len({call["id"] for call in calls}) == 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_history_with_calls_is_part_of_the_prompt(tiny_server: RunningServer) -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "北京"}'}}
        ]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]  # fmt: skip
    body = {"model": "tiny", "messages": messages, "max_tokens": 2, "temperature": 0}
    url = f"{tiny_server.url}/v1/chat/completions"
    with_calls = httpx.post(url, json=body, timeout=30).json()
    without = httpx.post(url, json={**body, "messages": messages[:1]}, timeout=30).json()
    assert with_calls["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 15
    broken = [messages[0], {**messages[1], "role": "user"}]
    answer = httpx.post(url, json={**body, "messages": broken}, timeout=30)
    assert answer.status_code == 400 and "only assistants call tools" in answer.json()["error"]["message"]
