"""How a key that is not ours, or a value in an older spelling, becomes ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Untranslatable(ValueError):
    """An old key asks for something that cannot be had; the text says what is allowed and what to do."""


@dataclass(frozen=True)
class Translation:
    """What an old key means here: values of our keys (none when it changes nothing), and a line for the user."""

    values: dict[str, Any] = field(default_factory=dict)
    notice: str = ""


@dataclass(frozen=True)
class OldKey:
    """A key that users bring.

    Attributes:
        translate: value -> Translation; raises Untranslatable.
        new: our key, when there is exactly one.
        touches: our keys that the old key decides about; their rules are skipped when it cannot be translated.
        summary: what happens, for the reference.
    """

    translate: Callable[[Any], Translation]
    new: str | None = None
    touches: tuple[str, ...] = ()
    summary: str = ""


def same_meaning(new: str) -> OldKey:
    """An old name whose values did not change."""
    return OldKey(lambda value: Translation({new: value}, f"the name here is {new}."), new, (new,), f"renamed to {new}")


def renamed(new: str, convert: Callable[[Any], Any], summary: str = "") -> OldKey:
    """An old name whose values changed too. ``convert`` returns the new value or raises Untranslatable."""

    def translate(value: Any) -> Translation:
        result = convert(value)
        return Translation({new: result}, f"read as {new}: {_shown(result)}.")

    return OldKey(translate, new, (new,), summary or f"renamed to {new}, values translated")


def respelled(key: str, convert: Callable[[Any], Any], why: str = "") -> OldKey:
    """One of our own keys for which older spellings of values are known. Says something only when one is used."""

    def translate(value: Any) -> Translation:
        result = convert(value)
        unchanged = type(result) is type(value) and result == value
        reason = f" ({why})" if why else ""
        return Translation({key: result}, "" if unchanged else f"{_shown(value)} is read as {_shown(result)}{reason}.")

    return OldKey(translate, key, (key,), f"older spellings of values are translated{': ' + why if why else ''}")


def without_effect(why: str) -> OldKey:
    """A key that changes nothing here."""
    return OldKey(lambda value: Translation({}, f"has no effect here: {why}."), summary=f"no effect: {why}")


def refused(what: str, instead: str, neutral: tuple[Any, ...]) -> OldKey:
    """A key that asks for something this version cannot do, unless its value asks for nothing."""

    def translate(value: Any) -> Translation:
        if any(type(value) is type(n) and value == n for n in neutral):
            return Translation({}, f"asks for nothing here ({what} is not built yet in this version).")
        raise Untranslatable(f"{what} is not built yet in this version. {instead}")

    return OldKey(translate, summary=f"{what}: not built yet")


def _shown(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, default=str)
