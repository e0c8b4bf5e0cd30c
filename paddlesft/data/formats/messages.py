"""``messages`` rows: OpenAI's shape with PaddleFormers' role names and ``label`` rule, tools and tool calls."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from paddlesft.data.conversation import Conversation, Message, Source, tool_call
from paddlesft.data.formats import fields
from paddlesft.data.problems import RowProblem, described, shown

NAME = "messages"
EXAMPLE = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
KEYS = ("messages", "tools", "label")

ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "tool_call": "call",
    "tool_calls": "call",
    "function_call": "call",
    "function_calls": "call",
    "function": "call",
}
TRAIN_FLAGS = ("train", "weight", "label")


def claims(row: dict[str, Any]) -> bool:
    """Whether a row looks like this format."""
    return "messages" in row


def parse(row: dict[str, Any], source: Source, reply_needed: bool = True) -> Conversation:
    """Turn one row into a conversation.

    Args:
        row: the row's object.
        source: its place.
        reply_needed: False for rows that are only to be answered.
    """
    entries = fields.list_of(row, "messages", "messages")
    found = [message(entry, f"messages[{i}]") for i, entry in enumerate(entries)]
    for i, entry in enumerate(found):
        if entry.role == "system" and i:
            raise RowProblem(f"messages[{i}].role", '"system"', "the system message stands first or not at all")
    marks = fields.labels_of(row, sum(entry.role == "assistant" for entry in found))
    if marks is not None:
        remaining = iter(marks)
        found = [replace(m, train=next(remaining)) if m.role == "assistant" else m for m in found]
    ends_with_reply(found, "messages", reply_needed)
    return Conversation(found, fields.tools_of(row), source)


def ends_with_reply(messages: list[Message], field: str, needed: bool) -> None:
    """Raise ``RowProblem`` when a conversation to train on does not end with a reply."""
    if needed and messages[-1].role != "assistant":
        last = f"{field}[{len(messages) - 1}]"
        raise RowProblem(last, f"the role {messages[-1].role!r} as the last", "a conversation that ends with a reply")


def message(entry: Any, path: str) -> Message:
    """Turn one entry into a message.

    Args:
        entry: the object with role and content.
        path: its place in the row, for messages.
    """
    if not isinstance(entry, dict):
        raise RowProblem(path, described(entry), "an object with role and content")
    entry = fields.without_nulls(entry)
    role = entry.get("role")
    if not isinstance(role, str) or role not in ROLE_NAMES:
        raise RowProblem(f"{path}.role", shown(role), f"one of {', '.join(ROLE_NAMES)}")
    kind = ROLE_NAMES[role]
    content = content_text(entry.get("content"), f"{path}.content", as_json=kind in ("tool", "call"))
    calls = [_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(_calls(entry, path))]
    if kind == "call":
        calls = calls_from_text(content, f"{path}.content")
        kind, content = "assistant", ""
    if calls and kind != "assistant":
        raise RowProblem(f"{path}.tool_calls", f"calls in a message of role {role!r}", "calls in assistant messages")
    if not calls and kind == "assistant":
        fields.string(content, f"{path}.content")
    name = entry.get("name") if isinstance(entry.get("name"), str) else None
    return Message(kind, content, _train_flag(entry, kind, path), calls or None, name)


def _train_flag(entry: dict[str, Any], kind: str, path: str) -> bool | None:
    given = [key for key in TRAIN_FLAGS if key in entry]
    if not given:
        return None
    mark = fields.flag(entry[given[0]], f"{path}.{given[0]}")
    if mark and kind != "assistant":
        raise RowProblem(f"{path}.{given[0]}", "1", "0: only the assistant's messages are trained")
    return mark if kind == "assistant" else None


def content_text(value: Any, field: str, as_json: bool = False) -> str:
    """Return a message's content as text: a string, a list of text parts, or (for tools) any JSON value."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        texts = []
        for i, part in enumerate(value):
            if part["type"] != "text":
                allowed = "parts of type text; images, video and audio are not supported"
                raise RowProblem(f"{field}[{i}].type", shown(part["type"]), allowed)
            texts.append(fields.string(part.get("text"), f"{field}[{i}].text", empty=True))
        return "".join(texts)
    if as_json:
        return json.dumps(value, ensure_ascii=False)
    raise RowProblem(field, described(value), "a string, or a list of text parts")


def _calls(entry: dict[str, Any], path: str) -> list[Any]:
    calls = fields.decoded(entry.get("tool_calls"))
    if calls is None:
        return []
    if isinstance(calls, dict):
        return [calls]
    if not isinstance(calls, list):
        raise RowProblem(f"{path}.tool_calls", described(calls), "a list of calls")
    return calls


def _call(call: Any, path: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowProblem(path, shown(call), 'an object such as {"function": {"name": "…", "arguments": {…}}}')
    return tool_call(inner["name"], inner.get("arguments", inner.get("parameters")))


def calls_from_text(content: str, field: str) -> list[dict[str, Any]]:
    """Return the calls that a message of a function-call role holds as JSON text."""
    value = fields.decoded(content)
    values = value if isinstance(value, list) else [value]
    return [_call(entry, field if len(values) == 1 else f"{field}[{i}]") for i, entry in enumerate(values)]
