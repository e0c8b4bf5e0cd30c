"""Help pages and the reference of all keys, made from the declarations."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from paddlesft.config.fields import default_of
from paddlesft.config.translation import OldKey
from paddlesft.config.values import describe_allowed, field_types

WIDTH = 79  # of the usual terminal


@dataclasses.dataclass(frozen=True)
class Section:
    """Keys that are shown together.

    Attributes:
        title: heading.
        keys: (declaration, type) of keys that do something.
    """

    title: str
    keys: list[tuple[dataclasses.Field, Any]]


def sections(groups: Mapping[str, type]) -> Iterator[Section]:
    """Yield the keys of config dataclasses by theme; a class that inherits its keys gives a section for each base."""
    for cls in groups.values():
        hints = field_types(cls)
        by_owner: dict[type, list[tuple[dataclasses.Field, Any]]] = {}
        for spec in dataclasses.fields(cls):
            owner = next(base for base in reversed(cls.__mro__) if spec.name in inspect.get_annotations(base))
            by_owner.setdefault(owner, []).append((spec, hints[spec.name]))
        for owner, keys in by_owner.items():
            yield Section((owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip("."), keys)


def help_text(groups: Mapping[str, type], head: str = "") -> str:
    """Return the text behind ``--help`` of a verb.

    Args:
        groups: the verb's config dataclasses.
        head: usage lines that come first.

    Returns:
        One paragraph for each key that does something, then the names of the others.
    """
    lines = [head.rstrip(), ""] if head else []
    idle: list[str] = []
    unbuilt: list[str] = []
    for section in sections(groups):
        shown = [pair for pair in section.keys if _is_live(pair[0])]
        idle += [spec.name for spec, _ in section.keys if spec.metadata.get("no_effect")]
        unbuilt += [spec.name for spec, _ in section.keys if spec.metadata.get("unbuilt") and not _is_live(spec)]
        if not shown:
            continue
        lines.append(f"{section.title}:")
        for spec, tp in shown:
            lines.append(f"  --{spec.name}  {describe_allowed(spec, tp)}{_default_note(spec)}")
            lines += textwrap.wrap(spec.metadata["help"], WIDTH, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    for title, names in (
        ("Not built yet in this version (accepted while off)", unbuilt),
        ("Accepted without effect (docs/config.md says why)", idle),
    ):
        if names:
            lines.append(f"{title}:")
            lines += textwrap.wrap(", ".join(names), WIDTH, initial_indent="  ", subsequent_indent="  ")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _is_live(spec: dataclasses.Field) -> bool:
    # A Literal key may be partly built (mode: dynamic, static); it stays among the live ones.
    return not spec.metadata.get("no_effect") and not (spec.metadata.get("unbuilt") and not _is_partly_built(spec))


def _is_partly_built(spec: dataclasses.Field) -> bool:
    return isinstance(default_of(spec), str) and bool(default_of(spec))


def _default_note(spec: dataclasses.Field) -> str:
    default = default_of(spec)
    return "" if default is None else f" (default {json.dumps(default, ensure_ascii=False)})"


def markdown(groups: Mapping[str, type], old_keys: Mapping[str, OldKey] | None = None, level: int = 2) -> str:
    """Return the reference of all keys as Markdown tables.

    Args:
        groups: config dataclasses.
        old_keys: keys of other tools, listed at the end with what becomes of them.
        level: level of the headings.

    Returns:
        The text, without a title of its own.
    """
    mark, lines = "#" * level, []
    unbuilt: list[dataclasses.Field] = []
    idle: list[dataclasses.Field] = []
    for section in sections(groups):
        live = [pair for pair in section.keys if _is_live(pair[0])]
        unbuilt += [s for s, _ in section.keys if s.metadata.get("unbuilt") and not _is_live(s)]
        idle += [s for s, _ in section.keys if s.metadata.get("no_effect")]
        if not live:
            continue
        lines += [f"{mark} {section.title}", "", "| key | takes | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{s.name}` | {_cell(describe_allowed(s, tp))} | {_cell(_code(default_of(s)))} | {_meaning(s)} |"
            for s, tp in live
        ]
        lines.append("")
    if unbuilt:
        lines += [f"{mark} Not built yet in this version", ""]
        lines += ["The keys are known; asking for them is an error that says so.", ""]
        lines += ["| key | asks for | meaning |", "|---|---|---|"]
        lines += [f"| `{spec.name}` | {_cell(spec.metadata['unbuilt'])} | {_meaning(spec)} |" for spec in unbuilt]
        lines.append("")
    if idle:
        lines += [
            f"{mark} Accepted without effect",
            "",
            "Whoever sets one of these is told why it changes nothing.",
            "",
        ]
        lines += ["| key | meaning elsewhere | why it changes nothing here |", "|---|---|---|"]
        lines += [f"| `{s.name}` | {_meaning(s)} | {_cell(s.metadata['no_effect'])} |" for s in idle]
        lines.append("")
    if old_keys:
        lines += [f"{mark} Keys of PaddleNLP and PaddleFormers that are not ours", ""]
        lines += ["They are accepted; a notice in front of the run says what became of them.", ""]
        lines += ["| key | what becomes of it |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(old_keys[name].summary)} |" for name in sorted(old_keys, key=str.lower)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _meaning(spec: dataclasses.Field) -> str:
    old = spec.metadata.get("aliases") or ()
    names = f" Old names: {', '.join(f'`{name}`' for name in old)}." if old else ""
    return _cell(spec.metadata["help"] + names)


def _code(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
