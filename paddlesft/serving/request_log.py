"""What is known of a request while it is answered, and the line that the log gets when it has ended."""

from __future__ import annotations

import contextvars
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("paddlesft.requests")

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_LONGEST_TEXT = 10_000  # characters of a logged prompt or reply
_current: contextvars.ContextVar[RequestRecord | None] = contextvars.ContextVar("request", default=None)


@dataclass
class RequestRecord:
    """One request.

    Attributes:
        id: the client's ``X-Request-Id`` where that is sane, else a new one.
        method: of HTTP.
        path: without its query.
        client: address that the connection came from.
        status: of the answer, as soon as it is known.
        began: ``time.monotonic`` of its arrival.
        facts: what else the line says: model, tokens, why it ended.
    """

    id: str
    method: str = "-"
    path: str = "-"
    client: str = "-"
    status: int = 0
    began: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since its arrival."""
        return time.monotonic() - self.began

    def add(self, **numbers: int) -> None:
        """Count something, such as tokens of one more reply."""
        for name, number in numbers.items():
            self.facts[name] = self.facts.get(name, 0) + number

    def note(self, **facts: Any) -> None:
        """Say something about the request; texts are shortened."""
        self.facts.update({k: v[:_LONGEST_TEXT] if isinstance(v, str) else v for k, v in facts.items()})

    def line(self) -> str:
        """Return the log's line: one JSON object, which no text of a request can break or colour."""
        told = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "id": self.id,
            "client": self.client,
            "method": self.method[:20],
            "path": self.path[:200],
            "status": self.status,
            "seconds": round(self.seconds, 3),
        }
        return json.dumps({**told, **self.facts}, ensure_ascii=True, default=str)

    def write(self) -> None:
        """Write the line."""
        logger.info("%s", self.line())


def request_id(offered: str | None) -> str:
    """Return a client's id of its request if it is short and plain, else a new one."""
    if offered is not None and _SANE_ID.fullmatch(offered):
        return offered
    return f"req-{uuid.uuid4().hex}"


def current() -> RequestRecord | None:
    """Return the request that this thread answers, None outside of one."""
    return _current.get()


def enter(record: RequestRecord | None) -> None:
    """Say which request this thread answers from now on."""
    _current.set(record)
