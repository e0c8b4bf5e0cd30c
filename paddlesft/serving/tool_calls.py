"""Calls of tools in the text of a reply: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

That is what Hermes and Qwen templates teach, and what ``data/tool_text.py`` writes for templates without a form of
their own.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class ToolCallReader:
    """Takes calls out of a reply while it comes.

    Attributes:
        calls: found so far, in OpenAI's form.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._held = ""
        self._behind_call = False  # white space between calls, and behind the last, is nobody's text

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Add text.

        Returns:
            Text that belongs to no call, and the calls that became complete. What may begin a call is held back.
        """
        self._held += text
        plain, new = "", []
        while OPEN in self._held:
            before, _, behind = self._held.partition(OPEN)
            plain += self._told(before)
            self._held = OPEN + behind
            if CLOSE not in behind:
                break
            inside, _, self._held = behind.partition(CLOSE)
            call = _read(inside)
            if call is None:  # the model wrote something else there: it is text
                plain += self._told(OPEN + inside + CLOSE)
            else:
                new.append(call)
                self._behind_call = True
        else:
            keep = next((n for n in range(min(len(OPEN) - 1, len(self._held)), 0, -1) if _ends(self._held, n)), 0)
            certain = self._held[: len(self._held) - keep]
            if not (self._behind_call and not certain.strip()):
                plain += self._told(certain)
                self._held = self._held[len(certain) :]
        self.calls += new
        return plain, new

    def finish(self) -> str:
        """Return the text that was held back: a call that did not become complete is text."""
        held, self._held = self._held, ""
        return self._told(held)

    def _told(self, text: str) -> str:
        if self._behind_call and not text.strip():
            return ""
        self._behind_call = False
        return text


def _ends(text: str, count: int) -> bool:
    return OPEN.startswith(text[-count:])


def _read(text: str) -> dict[str, Any] | None:
    """Return a call in OpenAI's form; None where the text is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", {})
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": found["name"], "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
