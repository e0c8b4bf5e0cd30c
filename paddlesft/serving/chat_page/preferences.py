"""Thumbs up and down as rows for preference training (DPO): a prompt, a reply that was liked, one that was not."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Messages = Sequence[dict[str, str]]
Row = dict[str, Any]


@dataclass
class Votes:
    """What a user thinks of replies, by the prompt they answer."""

    _of: dict[str, dict[str, bool]] = field(default_factory=dict)

    def set(self, prompt: Messages, reply: str, liked: bool | None) -> None:
        """Note an opinion.

        Args:
            prompt: the messages before the reply.
            reply: its text.
            liked: None takes an opinion back.
        """
        votes = self._of.setdefault(_key(prompt), {})
        votes.pop(reply, None)
        if liked is not None:
            votes[reply] = liked

    def of(self, prompt: Messages, reply: str) -> bool | None:
        """Return the opinion of a reply; None: there is none."""
        return self._of.get(_key(prompt), {}).get(reply)

    def pairs(self) -> list[Row]:
        """Return a row for every liked reply and every disliked one to the same prompt."""
        return [
            {
                "messages": json.loads(prompt),
                "chosen_response": [{"role": "assistant", "content": liked}],
                "rejected_response": [{"role": "assistant", "content": disliked}],
            }
            for prompt, votes in self._of.items()
            for liked in (reply for reply, good in votes.items() if good)
            for disliked in (reply for reply, good in votes.items() if not good)
        ]


class PreferenceFile:
    """A file of pairs, one row a line, that grows with the votes of all who use the page.

    Args:
        path: the file; lines that it has stay.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()

    def update(self, before: Sequence[Row], after: Sequence[Row]) -> None:
        """Write the pairs that arose, and take out those whose votes were taken back.

        Args:
            before: a user's pairs before a vote.
            after: the same user's pairs after it.
        """
        gone = [line(row) for row in before if row not in after]
        new = [line(row) for row in after if row not in before]
        if not gone and not new:
            return
        with self._lock:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
            for one in gone:
                if one in lines:
                    lines.remove(one)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_name(f".{self.path.name}.part")
            beside.write_text("".join(one + "\n" for one in [*lines, *new]), encoding="utf-8")
            os.replace(beside, self.path)


def line(row: Row) -> str:
    """Return a row as a line of a file."""
    # U+2028 and its like end lines for some readers, so they are written as \u2028
    text = json.dumps(row, ensure_ascii=False)
    return "".join(f"\\u{ord(c):04x}" if c in "\x85\u2028\u2029" else c for c in text)


def _key(prompt: Messages) -> str:
    return json.dumps([{"role": m["role"], "content": m["content"]} for m in prompt], ensure_ascii=False)
