"""Plain columns: one question and one answer in each row, under names a column map gives or everybody knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddlesft.data.conversation import Conversation, Message, Source
from paddlesft.data.formats import fields
from paddlesft.errors import DataError

NAME = "columns"
EXAMPLE = '{"question": "…", "answer": "…"}, or any two columns with a column map'

# The first pair that a row has both of is used.
KNOWN_PAIRS = (
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
    ("query", "answer"),
    ("question", "response"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("input", "output"),
    ("source", "target"),
    ("user", "assistant"),
    ("inputs", "targets"),
)
KEYS = tuple(dict.fromkeys(name for pair in KNOWN_PAIRS for name in pair))

# what a column map's keys may be called -> the part of the conversation it fills
PARTS = {
    "user": "user", "question": "user", "prompt": "user", "query": "user", "src": "user", "instruction": "user",
    "assistant": "assistant", "answer": "assistant", "response": "assistant", "tgt": "assistant", "output": "assistant",
    "system": "system",
    "input": "input",
}  # fmt: skip


def claims(row: dict[str, Any]) -> bool:
    """Whether a row has one of the known pairs."""
    return known_pair(row) is not None


def known_pair(row: dict[str, Any]) -> tuple[str, str] | None:
    """Return the pair of known column names this row has."""
    return next((pair for pair in KNOWN_PAIRS if pair[0] in row and pair[1] in row), None)


def normalised_map(column_map: Mapping[str, str]) -> dict[str, str]:
    """Return the column map with our names for the parts: ``user``, ``assistant``, ``system``, ``input``.

    Args:
        column_map: part -> the data's column, such as ``{"question": "title", "answer": "body"}``.

    Raises:
        DataError: an unknown part, or no column for the question or the answer.
    """
    parts: dict[str, str] = {}
    for part, column in column_map.items():
        if part not in PARTS:
            raise DataError(
                f"column_map: found the part {part!r} (for column {column!r}); allowed parts: {', '.join(PARTS)}. "
                'Write it as {"question": "<your column>", "answer": "<your column>"}.'
            )
        parts[PARTS[part]] = column
    for part, name in (("user", "question"), ("assistant", "answer")):
        if part not in parts:
            raise DataError(
                f"column_map: found {dict(column_map)!r}, which names no column for the {name}; "
                f'add "{name}": "<your column>".'
            )
    return parts


def parse(
    row: dict[str, Any], source: Source, reply_needed: bool = True, column_map: Mapping[str, str] | None = None
) -> Conversation:
    """Turn one row into a conversation.

    Args:
        row: the row's object.
        source: its place.
        reply_needed: False for rows that are only to be answered.
        column_map: part -> column, normalised; None to use the known pair the row has.
    """
    if column_map is None:
        question, answer = known_pair(row) or _half_pair(row)
        column_map = {"user": question, "assistant": answer, "system": "system"}
    messages = []
    system = fields.text(row, column_map["system"], empty=True) if "system" in column_map else ""
    if system:
        messages.append(Message("system", system))
    question_text = fields.text(row, column_map["user"])
    if "input" in column_map:
        extra = fields.text(row, column_map["input"], empty=True)
        question_text = "\n".join(part for part in (question_text, extra) if part)
    messages.append(Message("user", question_text))
    if reply_needed or row.get(column_map["assistant"]):
        messages.append(Message("assistant", fields.text(row, column_map["assistant"])))
    return Conversation(messages, None, source)


def read_columns(row: dict[str, Any], column_map: Mapping[str, str] | None = None) -> set[str]:
    """Return the names of the columns that ``parse`` reads of a row."""
    return set(column_map.values()) if column_map else {*(known_pair(row) or ()), "system"}


def _half_pair(row: dict[str, Any]) -> tuple[str, str]:
    """The pair a row has only one column of, so that the message names the other."""
    return next((pair for pair in KNOWN_PAIRS if pair[0] in row or pair[1] in row), KNOWN_PAIRS[0])
