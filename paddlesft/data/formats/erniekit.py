"""ERNIEKit rows: ``src`` and ``tgt`` lists of one length, ``system``, ``label`` (0/1 per reply), ``is_system``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from paddlesft.data.conversation import Conversation, Message, Source
from paddlesft.data.formats import fields, paddlenlp
from paddlesft.data.problems import RowProblem

NAME = "erniekit"
EXAMPLE = '{"system": "…", "src": ["question"], "tgt": ["answer"], "label": [1]}'
KEYS = ("src", "tgt", "system", "label", "is_system")


def claims(row: dict[str, Any]) -> bool:
    """Whether a row looks like this format."""
    return "src" in row and any(fields.present(row, key) for key in ("system", "label", "is_system"))


def parse(row: dict[str, Any], source: Source, reply_needed: bool = True) -> Conversation:
    """Turn one row into a conversation. With ``is_system`` 1 the first ``src`` is the system text, its ``tgt`` unused.

    Args:
        row: the row's object.
        source: its place.
        reply_needed: False for rows that are only to be answered.
    """
    row = {**row, "src": fields.decoded(row.get("src")), "tgt": fields.decoded(row.get("tgt"))}
    system = fields.text(row, "system", empty=True)
    if row.get("is_system") is not None and fields.flag(row["is_system"], "is_system"):
        if system:
            raise RowProblem("is_system", "1 beside a system text", "one of the two")
        sources, targets = row.get("src"), row.get("tgt")
        if not isinstance(sources, list) or not isinstance(targets, list) or len(sources) < 2:
            raise RowProblem("src", "no turn after the system text", "lists with the system text first")
        system = fields.string(sources[0], "src[0]")
        skipped_target = len(targets) == len(sources)
        row["src"], row["tgt"] = sources[1:], targets[1:] if skipped_target else targets
        if skipped_target and isinstance(row.get("label"), list) and len(row["label"]) == len(targets):
            row["label"] = row["label"][1:]
    messages = paddlenlp.turns(row, reply_needed)
    marks = fields.labels_of(row, sum(message.role == "assistant" for message in messages))
    if marks is not None:
        remaining = iter(marks)
        messages = [replace(m, train=next(remaining)) if m.role == "assistant" else m for m in messages]
    if system:
        messages.insert(0, Message("system", system))
    return Conversation(messages, None, source)
