"""What every file format is turned into: a conversation of messages, with the place it came from."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Source:
    """Where a row stands.

    Attributes:
        file: path as the user gave it.
        line: 1-based line on which the row begins; in a parquet file the 1-based row number.
        row: 1-based number of the row where others stand on the same line, else 0.
    """

    file: str = "<memory>"
    line: int = 0
    row: int = 0

    def __str__(self) -> str:
        if self.file.endswith(".parquet"):
            return f"{self.file}:row {self.line}"
        return f"{self.file}:{self.line}" + (f" (row {self.row})" if self.row else "")


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool`` (what a tool answered).
        content: the text; may be empty only where ``tool_calls`` is given.
        train: whether an assistant message is trained on. None means yes for assistant messages; others never are.
        tool_calls: what the assistant calls, each ``{"type": "function", "function": {"name", "arguments"}}``.
        name: the tool's or speaker's name, where the data has one.
    """

    role: str
    content: str
    train: bool | None = None
    tool_calls: list[dict[str, Any]] | None = None
    name: str | None = None

    @property
    def trained(self) -> bool:
        """Whether this message is one the model learns to write."""
        return self.role == "assistant" and self.train is not False

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it."""
        entry: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            entry["tool_calls"] = self.tool_calls
        if self.name is not None:
            entry["name"] = self.name
        return entry


@dataclass(frozen=True)
class Conversation:
    """Messages in order, the tools on offer, the row they came from, and the names of its fields that were not read."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    source: Source = field(default_factory=Source)
    unread: tuple[str, ...] = ()

    def with_system(self, text: str | None) -> Conversation:
        """Return the conversation with ``text`` as system message where it has none."""
        if not text or (self.messages and self.messages[0].role == "system"):
            return self
        return replace(self, messages=[Message("system", text), *self.messages])

    def replies(self) -> list[int]:
        """Indices of the assistant messages."""
        return [i for i, message in enumerate(self.messages) if message.role == "assistant"]

    def without_first_round(self) -> Conversation | None:
        """Return the conversation less its oldest round, system message kept; None when only one round is left.

        A round goes from one user message (or run of them) up to the next user message that follows a reply.
        """
        start = 1 if self.messages and self.messages[0].role == "system" else 0
        for i in range(start + 1, len(self.messages)):
            follows_reply = self.messages[i - 1].role == "assistant"
            if self.messages[i].role == "user" and follows_reply:
                return replace(self, messages=[*self.messages[:start], *self.messages[i:]])
        return None

    @classmethod
    def of(cls, messages: list[dict[str, Any] | Message], tools: list[dict[str, Any]] | None = None) -> Conversation:
        """Build a conversation from plain role/content dicts (chat front ends, tests); other keys are left out."""
        made = []
        for m in messages:
            if not isinstance(m, Message):
                m = Message(m["role"], m.get("content") or "", m.get("train"), m.get("tool_calls"), m.get("name"))
            made.append(m)
        return cls(made, tools)


def tool_call(name: str, arguments: Any) -> dict[str, Any]:
    """Return one tool call in the shape chat templates read; JSON text in ``arguments`` is parsed."""
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    return {"type": "function", "function": {"name": name, "arguments": arguments if arguments is not None else {}}}
