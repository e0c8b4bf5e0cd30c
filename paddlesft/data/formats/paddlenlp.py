"""PaddleNLP rows: ``{"src": str | [str], "tgt": str | [str], "context": {"system": str}}``; lists are multi-turn."""

from __future__ import annotations

from typing import Any

from paddlesft.data.conversation import Conversation, Message, Source
from paddlesft.data.formats import fields
from paddlesft.data.problems import RowProblem, counted, described

NAME = "paddlenlp"
EXAMPLE = '{"src": "question", "tgt": "answer"}, or lists of them for several turns'
KEYS = ("src", "tgt", "context")


def claims(row: dict[str, Any]) -> bool:
    """Whether a row looks like this format."""
    return "src" in row and not any(fields.present(row, key) for key in ("system", "label", "is_system"))


def parse(row: dict[str, Any], source: Source, reply_needed: bool = True) -> Conversation:
    """Turn one row into a conversation.

    Args:
        row: the row's object.
        source: its place.
        reply_needed: False for rows that are only to be answered.
    """
    context = row.get("context") or {}
    if not isinstance(context, dict):
        raise RowProblem("context", described(context), 'an object such as {"system": "…"}')
    messages = turns(row, reply_needed)
    system = fields.text(context, "system", "context.system", empty=True)
    if system:
        messages.insert(0, Message("system", system))
    return Conversation(messages, None, source)


def turns(row: dict[str, Any], reply_needed: bool) -> list[Message]:
    """Return the user and assistant messages that ``src`` and ``tgt`` stand for."""
    sources = fields.strings_of(row, "src")
    if not reply_needed and not row.get("tgt"):
        targets = []
    else:
        targets = fields.strings_of(row, "tgt")
    missing = len(sources) - len(targets)
    if missing not in ((0,) if reply_needed else (0, 1)):
        found = f"{counted(len(targets), 'entry', 'entries')} beside {len(sources)} of src"
        raise RowProblem("tgt", found, "as many as src has")
    messages = []
    for i, text in enumerate(sources):
        messages.append(Message("user", text))
        if i < len(targets):
            messages.append(Message("assistant", targets[i]))
    return messages
