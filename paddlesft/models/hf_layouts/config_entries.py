"""Entries of config.json under Hugging Face's names and under PaddleNLP's, translated in both directions.

An entry that the Paddle model cannot follow is refused by name: a model that computes something else than its config
says is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from paddlesft.errors import ModelDirectoryError

REQUIRED = object()  # the entry has no default
NOT_CARRIED = ("torch_dtype", "dtype", "transformers_version", "auto_map", "architectures", "model_type")


@dataclass(frozen=True)
class Entry:
    """One entry of config.json.

    Attributes:
        hf: its name in a Hugging Face config; None: PaddleNLP's alone, looked at when a model is exported.
        paddle: its name in a PaddleNLP config; None: the Paddle model has one behaviour, ``values`` says which.
        default: what transformers takes when the entry is missing (or a function of the entries translated so far);
            ``REQUIRED`` when a model must say it.
        aliases: other names in Hugging Face configs.
        values: the values that can be translated, Hugging Face's -> PaddleNLP's; None: every value, as it is.
        why: one sentence for the refusal of other values.
        null: null is a value of its own, and not the default.
    """

    hf: str | None
    paddle: str | None
    default: Any = REQUIRED
    aliases: tuple[str, ...] = ()
    values: Mapping[Any, Any] | None = None
    why: str = ""
    null: bool = False


def same(name: str, default: Any = REQUIRED, aliases: tuple[str, ...] = ()) -> Entry:
    """Make an entry that has one name in both formats."""
    return Entry(name, name, default, aliases)


def token_id(name: str, default: Any) -> Entry:
    """Make the entry of a special token's id, which may be null."""
    return Entry(name, name, default, null=True)


def only(name: str, *allowed: Any, why: str) -> Entry:
    """Make a Hugging Face entry that the Paddle model follows for some values; the first is the default."""
    return Entry(name, None, allowed[0], values={value: value for value in allowed}, why=why)


def paddle_only(name: str, value: Any, why: str) -> Entry:
    """Make a PaddleNLP entry that transformers follows for one value."""
    return Entry(None, name, value, values={value: value}, why=why)


def to_paddle(entries: Iterable[Entry], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Translate a Hugging Face config.

    Args:
        entries: what the family's configs have.
        config: content of config.json.
        where: names the file in errors.

    Returns:
        The entries under PaddleNLP's names; entries that are in no table are carried along.

    Raises:
        ModelDirectoryError: a value is missing, contradictory, or cannot be translated.
    """
    rest = {key: value for key, value in config.items() if key not in NOT_CARRIED}
    out: dict[str, Any] = {}
    for entry in entries:
        if entry.hf is None:  # transformers ignores it, PaddleNLP would not
            if entry.paddle in rest:
                _lookup(entry.values or {}, rest[entry.paddle], entry.paddle, entry.why, where)
            continue
        value = _read(entry, rest, out, where)
        if entry.values is not None:
            value = _lookup(entry.values, value, entry.hf, entry.why, where)
        if entry.paddle is not None:
            out[entry.paddle] = value
    return rest | out


def to_hugging_face(entries: Iterable[Entry], config: Any) -> dict[str, Any]:
    """Translate a PaddleNLP config back.

    Args:
        entries: what the family's configs have.
        config: a PaddleNLP config.

    Raises:
        ModelDirectoryError: a value has no counterpart.
    """
    out: dict[str, Any] = {}
    for entry in entries:
        if entry.paddle is None:
            out[entry.hf] = entry.default
            continue
        value = getattr(config, entry.paddle, None)
        if value is None and not (entry.null and hasattr(config, entry.paddle)):
            value = None if entry.default is REQUIRED else _default(entry, _Attributes(config))
        if entry.values is not None:
            back: dict[Any, Any] = {}
            for theirs, ours in entry.values.items():
                back.setdefault(ours, theirs)
            value = _lookup(back, value, entry.paddle, entry.why, "The model's config")
        if entry.hf is not None:
            out[entry.hf] = value
    return out


class _Attributes:
    """Gives a config's attributes by index, as the functions among the defaults ask for them."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __getitem__(self, name: str) -> Any:
        return getattr(self.config, name)


def _default(entry: Entry, translated: Any) -> Any:
    return entry.default(translated) if callable(entry.default) else entry.default


def _read(entry: Entry, rest: dict[str, Any], out: Mapping[str, Any], where: str) -> Any:
    names = [name for name in (entry.hf, *entry.aliases) if name in rest]
    found = [rest.pop(name) for name in names]
    if not entry.null:
        found = [value for value in found if value is not None]
    if any(value != found[0] for value in found[1:]):
        raise ModelDirectoryError(
            f"{where}: {' and '.join(names)} contradict each other: {', '.join(map(str, found))}. Keep the right one."
        )
    if found:
        return found[0]
    if entry.default is REQUIRED:
        raise ModelDirectoryError(f"{where} has no {entry.hf}, which a model of this kind must say.")
    return _default(entry, out)


def _lookup(values: Mapping[Any, Any], value: Any, name: str, why: str, where: str) -> Any:
    for key, translated in values.items():
        if key == value:
            return translated
    allowed = ", ".join(repr(key) for key in values)
    raise ModelDirectoryError(f"{where}: {name} is {value!r}; {why} Works: {allowed}.")
