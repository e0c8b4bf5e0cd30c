"""Where a value came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Origin:
    """Where the value of a key came from.

    Attributes:
        kind: default, file, command line, or derived (computed from other values or from the machine).
        where: ``lora.json:4`` for a file.
        note: old name under which it was given, or the reason of a derived value.
    """

    kind: Literal["default", "file", "command line", "derived"]
    where: str = ""
    note: str = ""

    @property
    def place(self) -> str:
        """The place to name in an error: ``lora.json:4``, ``command line``, ``default`` or ``derived``."""
        return self.where or self.kind

    def __str__(self) -> str:
        if self.kind == "derived":
            return f"derived: {self.note}"
        return f"{self.place} ({self.note})" if self.note else self.place


DEFAULT = Origin("default")
