"""Alpaca rows: ``instruction``, ``input``, ``output``, and optionally ``system`` and ``history``."""

from __future__ import annotations

from typing import Any

from paddlesft.data.conversation import Conversation, Message, Source
from paddlesft.data.formats import fields
from paddlesft.data.problems import RowProblem, described, shown

NAME = "alpaca"
EXAMPLE = '{"instruction": "…", "input": "…", "output": "…"}'
KEYS = ("instruction", "input", "output", "system", "history")


def claims(row: dict[str, Any]) -> bool:
    """Whether a row looks like this format."""
    return "instruction" in row and ("output" in row or "input" in row)


def parse(row: dict[str, Any], source: Source, reply_needed: bool = True) -> Conversation:
    """Turn one row into a conversation. ``input`` follows ``instruction`` on a new line; ``history`` is trained too.

    Args:
        row: the row's object.
        source: its place.
        reply_needed: False for rows that are only to be answered.
    """
    messages = []
    system = fields.text(row, "system", empty=True)
    if system:
        messages.append(Message("system", system))
    history = fields.decoded(row.get("history")) or []
    if not isinstance(history, list):
        raise RowProblem("history", described(history), "a list of [question, answer] pairs")
    for i, pair in enumerate(history):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowProblem(f"history[{i}]", shown(pair), "a pair [question, answer]")
        messages.append(Message("user", fields.string(pair[0], f"history[{i}][0]")))
        messages.append(Message("assistant", fields.string(pair[1], f"history[{i}][1]")))
    instruction = fields.text(row, "instruction", empty=fields.present(row, "input"))
    extra = fields.text(row, "input", empty=True)
    question = "\n".join(part for part in (instruction, extra) if part)
    messages.append(Message("user", fields.string(question, "instruction")))
    if reply_needed or row.get("output"):
        messages.append(Message("assistant", fields.text(row, "output")))
    return Conversation(messages, None, source)
