"""Strict reading of one value by the type of its key. Nothing is converted that could have been a mistake.

Accepted: exactly the declared type; an integer where a number with a fraction is allowed; one value where a list is
allowed. ``true`` is no integer, ``"8"`` is no number, ``null`` only where nothing is allowed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from typing import Any

from paddlesft.config.documents import parse_yaml_value


class BadValue(ValueError):
    """A value does not fit its key; the text says what is allowed."""


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Return ``{key: type}`` of a config dataclass."""
    return typing.get_type_hints(cls)


def members(tp: Any) -> tuple[Any, ...]:
    """Return the alternatives of a type: those of a union, or the type alone."""
    return typing.get_args(tp) if typing.get_origin(tp) in (typing.Union, types.UnionType) else (tp,)


def describe_type(tp: Any) -> str:
    """Return in words what a key of this type takes."""
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "text",
        type(None): "null",
        object: "anything",
    }
    parts = []
    for member in members(tp):
        origin, args = typing.get_origin(member), typing.get_args(member)
        if origin is typing.Literal:
            parts.append(("one of " if len(args) > 1 else "") + ", ".join(map(str, args)))
        elif origin is list:
            inner = names.get(args[0])
            plural = {str: "texts", int: "integers", float: "numbers"}.get(args[0])
            parts.append(f"a list of {plural or 'entries, each ' + (inner or describe_type(args[0]))}")
        elif origin is dict:
            parts.append("a mapping of names to " + {str: "texts"}.get(args[1], "values"))
        else:
            parts.append(names[member])
    return " or ".join(parts)


def describe_range(spec: dataclasses.Field) -> str:
    """Return the range of a numeric key in words, or an empty string."""
    limits = spec.metadata
    parts = [
        f"{word} {limits[name] if isinstance(limits[name], int) else format(limits[name], 'g')}"
        for name, word in (("minimum", "at least"), ("over", "greater than"), ("maximum", "at most"))
        if limits.get(name) is not None
    ]
    return " and ".join(parts)


def describe_allowed(spec: dataclasses.Field, tp: Any) -> str:
    """Return in words everything a key takes: its type and its range."""
    span = describe_range(spec)
    if not span:
        return describe_type(tp)
    rest = [m for m in members(tp) if m is not type(None)]
    text = " or ".join(map(describe_type, rest)) + f" {span}"
    return text + (" or null" if len(rest) < len(members(tp)) else "")


def describe_found(value: Any) -> str:
    """Return a value as it would stand in a file, with the name of its type."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "an integer", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    kind = kinds.get(type(value), type(value).__name__)
    shown = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, float) else repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return f"{shown} ({kind})"


def check_type(value: Any, tp: Any) -> Any:
    """Return ``value`` as the declared type wants it.

    Args:
        value: what was read.
        tp: the declared type.

    Returns:
        The same value; an integer becomes a float where a float is declared, a single value a list of one.

    Raises:
        BadValue: the value is of another type.
    """
    for member in members(tp):
        try:
            return _check_member(value, member)
        except BadValue:
            continue
    for member in members(tp):
        entry = typing.get_args(member)[0] if typing.get_origin(member) is list else None
        if entry is None or typing.get_origin(entry) is list or value is None:
            continue
        try:
            return [_check_member(value, entry)]
        except BadValue:
            continue
    raise BadValue(describe_type(tp))


def _check_member(value: Any, tp: Any) -> Any:
    origin, args = typing.get_origin(tp), typing.get_args(tp)
    if tp is object:
        return value
    if tp is type(None) and value is None:
        return None
    if origin is typing.Literal and isinstance(value, str) and value in args:
        return value
    if tp is bool and isinstance(value, bool):
        return value
    if tp is int and type(value) is int:
        return value
    if tp is float and type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            raise BadValue from None
        if math.isfinite(number):
            return number
    if tp is str and isinstance(value, str) and _is_plain_text(value):
        return value
    if origin is list and isinstance(value, list):
        return [_check_member(entry, args[0]) for entry in value]
    if origin is dict and isinstance(value, dict):
        return {_check_member(key, args[0]): _check_member(entry, args[1]) for key, entry in value.items()}
    raise BadValue


def _is_plain_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, from an escape such as "\ud800"
        return False
    return "\0" not in text


def check_range(value: Any, spec: dataclasses.Field) -> None:
    """Check a number, or each number of a list, against the key's range.

    Raises:
        BadValue: outside.
    """
    limits = spec.metadata
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        low, over, high = limits.get("minimum"), limits.get("over"), limits.get("maximum")
        below = (low is not None and number < low) or (over is not None and number <= over)
        if below or (high is not None and number > high):
            raise BadValue(describe_range(spec))


def parse_text(text: str, tp: Any) -> Any:
    """Read a value given on the command line by the type of its key; ``check_type`` still has to accept it.

    Text stays as it is where text is allowed. Booleans are true/false in any case, or 1/0, as PaddleNLP's documentation
    writes them. Lists are ``a,b`` or ``[a, b]``,
    mappings ``{a: b}``. ``null`` and ``None`` mean nothing where nothing is allowed.
    """
    kinds = members(tp)
    origins = [typing.get_origin(kind) for kind in kinds]
    if type(None) in kinds and text in ("null", "None"):
        return None
    bracketed = text.startswith("[") and text.endswith("]")
    if bracketed and list in origins:
        return parse_yaml_value(text)
    if text.startswith("{") and dict in origins:
        return parse_yaml_value(text)
    if object in kinds:  # an old key whose value has no type of ours
        return parse_yaml_value(text)
    if str in kinds or typing.Literal in origins:
        return text
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if bool in kinds and int not in kinds and text in ("1", "0"):
        return text == "1"
    if list in origins:
        inner = typing.get_args(kinds[origins.index(list)])[0]
        return [parse_text(part.strip(), inner) for part in text.split(",")]
    if int in kinds or float in kinds:
        number = parse_yaml_value(text)
        return number if isinstance(number, int | float) and not isinstance(number, bool) else text
    return text
