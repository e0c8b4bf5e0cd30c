"""Checks of single values that several formats share. Each raises ``RowProblem`` with what was found and allowed."""

from __future__ import annotations

import json
import math
from typing import Any

from paddlesft.data.problems import RowProblem, counted, described, shown


def present(row: dict[str, Any], key: str) -> bool:
    """Whether the row has a value under ``key``; null counts as absent, as table formats write it for missing cells."""
    return row.get(key) is not None


def text(row: dict[str, Any], key: str, path: str | None = None, empty: bool = False) -> str:
    """Return the string under ``key``.

    Args:
        row: the object that holds it.
        key: its name there.
        path: the field's name for messages; ``key`` when None.
        empty: whether an empty string is fine; a missing one is then "" too.
    """
    field = path or key
    value = row.get(key)
    if value is None:
        if empty:
            return ""
        found = "null" if key in row else f"no such field (the row has {', '.join(map(repr, row)) or 'no fields'})"
        raise RowProblem(field, found, "a string that is not empty")
    return string(value, field, empty)


def string(value: Any, field: str, empty: bool = False) -> str:
    """Return ``value`` when it is a usable string. Numbers are written out: a table's answer column may hold them."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)  # NaN is how table tools write a missing cell
    if not isinstance(value, str):
        raise RowProblem(field, described(value), "a string")
    if not empty and not value.strip():
        raise RowProblem(field, "an empty string" if not value else "only white space", "a string that is not empty")
    return value


def decoded(value: Any) -> Any:
    """Return what a JSON text stands for when a table's cell holds a list or object as text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def list_of(row: dict[str, Any], key: str, what: str) -> list[Any]:
    """Return the list under ``key``; ``what`` names its entries in the message."""
    value = decoded(row.get(key))
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else described(value)
        raise RowProblem(key, "null" if value is None else found, f"a list of {what}")
    return value


def tools_of(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the row's ``tools``: a list of objects, or that list as JSON text."""
    value = decoded(row.get("tools"))
    if value in (None, "", []):
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        found = described(value)
        raise RowProblem("tools", found, "a list of objects, or that list as JSON text")
    return [without_nulls(tool) for tool in value]


def without_nulls(value: Any) -> Any:
    """Drop null entries of nested objects: parquet fills the union of all rows' keys with them."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value


def flag(value: Any, field: str) -> bool:
    """Return a 0/1 or true/false mark as a bool."""
    if value in (0, 1) and isinstance(value, int | float | bool):
        return bool(value)
    raise RowProblem(field, shown(value), "0 or 1")


def labels_of(row: dict[str, Any], replies: int) -> list[bool] | None:
    """Return the row's ``label`` list: one 0 or 1 for each reply, in order; None when the row has none."""
    value = decoded(row.get("label"))
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    marks = [flag(mark, f"label[{i}]") for i, mark in enumerate(values)]
    if len(marks) != replies:
        found = f"{counted(len(marks), 'entry', 'entries')} {shown(value)}"
        raise RowProblem("label", found, f"{replies}: one 0 or 1 for each reply")
    return marks


def strings_of(row: dict[str, Any], key: str) -> list[str]:
    """Return a field that is one string or a list of strings, as a list."""
    value = decoded(row.get(key)) if not isinstance(row.get(key), str) else row[key]
    if isinstance(value, list):
        if not value:
            raise RowProblem(key, "an empty list", "a string, or a list with one string for each turn")
        return [string(entry, f"{key}[{i}]", empty=key == "src") for i, entry in enumerate(value)]
    return [text(row, key, empty=key == "src" and key in row and row[key] is not None)]
