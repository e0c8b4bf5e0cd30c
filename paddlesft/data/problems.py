"""Rows that cannot be used: how one is described and how all of them become one error text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddlesft.data.conversation import Source
from paddlesft.errors import DataError

SHOWN_IN_FULL = 20


@dataclass(frozen=True)
class Problem:
    """One reason why one row cannot be used.

    Attributes:
        source: the row's file and line.
        field: path of the value inside the row, such as ``messages[2].role``; empty for the row as a whole.
        found: what stands there.
        allowed: what may stand there.
    """

    source: Source
    field: str
    found: str
    allowed: str

    def __str__(self) -> str:
        place = f"field {self.field!r}: " if self.field else ""
        return f"{self.source}  {place}found {self.found}; allowed: {self.allowed}"


class RowProblem(Exception):
    """Raised by a format's parser; the reader adds the place and collects it."""

    def __init__(self, field: str, found: str, allowed: str) -> None:
        super().__init__(f"{field}: found {found}; allowed: {allowed}")
        self.field, self.found, self.allowed = field, found, allowed

    def at(self, source: Source) -> Problem:
        """Return the problem with its place."""
        return Problem(source, self.field, self.found, self.allowed)


def shown(value: Any, limit: int = 60) -> str:
    """Return a value as it is quoted in error texts: JSON, cut after ``limit`` characters."""
    if value is None:
        return "null"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def described(value: Any) -> str:
    """Return what kind of value stands somewhere, in JSON's words, and the value."""
    if value is None or isinstance(value, bool):
        return shown(value)
    kinds = {dict: "the object", list: "the list", str: "the text", int: "the number", float: "the number"}
    return f"{kinds.get(type(value), type(value).__name__)} {shown(value)}"


def counted(number: int, one: str, more: str | None = None) -> str:
    """Return a number with its noun: 1 row, 2 rows."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def unread_fields(rows: Mapping[str, int], most: int = 6) -> list[str]:
    """Return the line that names fields nothing was read of, or nothing.

    Args:
        rows: how many rows have each of them.
        most: how many are named.
    """
    if not rows:
        return []
    named = [f"{name!r} ({counted(number, 'row')})" for name, number in list(rows.items())[:most]]
    more = [f"{len(rows) - most} more"] if len(rows) > most else []
    return [f"Fields that are not read: {', '.join(named + more)}."]


def listing(problems: Sequence[Problem], rows: int) -> str:
    """Return the text that lists the problems: the first 20 in full, the rest counted by field.

    Args:
        problems: in the order found.
        rows: how many rows were read, bad ones included.
    """
    bad_rows = len({problem.source for problem in problems})
    head = f"{counted(bad_rows, 'row')} of {max(rows, bad_rows):,} cannot be used" if rows else "No row can be used"
    lines = [f"{head}:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN_IN_FULL]]
    rest = problems[SHOWN_IN_FULL:]
    if rest:
        kinds = Counter(problem.field.split("[")[0] for problem in rest)
        told = (f"{count:,} in " + (f"field {field!r}" if field else "the row itself") for field, count in
                kinds.most_common())  # fmt: skip
        lines.append(f"  … and {len(rest):,} more: {', '.join(told)}")
    lines.append("Nothing was written. Correct or remove these rows; `paddlesft check-data` shows what is left.")
    return "\n".join(lines)


def raise_if_any(problems: Sequence[Problem], rows: int) -> None:
    """Raise ``DataError`` with the full listing when there is at least one problem."""
    if problems:
        raise DataError(listing(problems, rows))
