"""ShareGPT rows: ``{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}``."""

from __future__ import annotations

from typing import Any

from paddlesft.data.conversation import Conversation, Message, Source
from paddlesft.data.formats import fields
from paddlesft.data.formats.messages import calls_from_text, content_text, ends_with_reply
from paddlesft.data.formats.messages import message as openai_message
from paddlesft.data.problems import RowProblem, described, shown

NAME = "sharegpt"
EXAMPLE = '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}'
KEYS = ("conversations", "conversation", "tools", "system")

ROLE_NAMES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "call",
    "observation": "tool",
    "tool": "tool",
}


def claims(row: dict[str, Any]) -> bool:
    """Whether a row looks like this format."""
    return "conversations" in row or "conversation" in row


def parse(row: dict[str, Any], source: Source, reply_needed: bool = True) -> Conversation:
    """Turn one row into a conversation.

    Args:
        row: the row's object.
        source: its place.
        reply_needed: False for rows that are only to be answered.
    """
    key = "conversations" if "conversations" in row or "conversation" not in row else "conversation"
    entries = fields.list_of(row, key, "turns with from and value")
    messages = [_message(entry, f"{key}[{i}]") for i, entry in enumerate(entries)]
    for i, entry in enumerate(messages):
        if entry.role == "system" and i:
            raise RowProblem(f"{key}[{i}].from", '"system"', "the system turn stands first or not at all")
    system = fields.text(row, "system", empty=True)
    if system and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    ends_with_reply(messages, key, reply_needed)
    return Conversation(messages, fields.tools_of(row), source)


def _message(entry: Any, path: str) -> Message:
    if isinstance(entry, dict) and "role" in entry and "from" not in entry:
        return openai_message(entry, path)
    if not isinstance(entry, dict):
        raise RowProblem(path, described(entry), "an object with from and value")
    speaker = entry.get("from")
    if not isinstance(speaker, str) or speaker not in ROLE_NAMES:
        raise RowProblem(f"{path}.from", shown(speaker), f"one of {', '.join(ROLE_NAMES)}")
    role = ROLE_NAMES[speaker]
    value = content_text(entry.get("value"), f"{path}.value", as_json=role in ("call", "tool"))
    if role == "call":
        return Message("assistant", "", _weight(entry, path), calls_from_text(value, f"{path}.value"))
    if role != "tool":
        fields.string(value, f"{path}.value", empty=role == "system")
    return Message(role, value, _weight(entry, path) if role == "assistant" else None)


def _weight(entry: dict[str, Any], path: str) -> bool | None:
    for key in ("train", "weight", "label"):
        if entry.get(key) is not None:
            return fields.flag(entry[key], f"{path}.{key}")
    return None
