"""The strict loader: a flat file and the command line in, filled dataclasses out, or all errors at once.

Order of authority: command line, then file, then defaults. Names must be exact; old names are translated by
``renamed.py`` with a notice.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paddlesft.config.command_line import PLACE, read_command_line
from paddlesft.config.documents import Entry, find_document, read_document
from paddlesft.config.fields import NEUTRAL, default_of
from paddlesft.config.origins import DEFAULT, Origin
from paddlesft.config.translation import OldKey, Translation, Untranslatable, same_meaning
from paddlesft.config.values import (
    BadValue,
    check_range,
    check_type,
    describe_allowed,
    describe_found,
    field_types,
    members,
)
from paddlesft.errors import ConfigError


@dataclasses.dataclass
class Loaded:
    """What came out of a file and a command line.

    Attributes:
        instances: one filled dataclass for each group.
        origins: where each key's value came from.
        notices: lines for the user: renamed keys, keys without effect, repeated overrides.
        problems: error texts, each with its place.
        doubtful: keys whose value is missing or wrong; rules that look at them have nothing to say.
        path: the config file, if there was one.
    """

    instances: dict[str, Any]
    origins: dict[str, Origin]
    notices: list[str]
    problems: list[str]
    doubtful: set[str]
    path: Path | None


@dataclasses.dataclass
class _Given:
    """A value on its way to a key: which entry it came from, and the old name if that was used."""

    key: str
    value: Any
    entry: Entry


def load_arguments(
    groups: Mapping[str, type],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    old_keys: Mapping[str, OldKey] | None = None,
) -> tuple[dict[str, Any], dict[str, Origin], list[str]]:
    """Fill config dataclasses from a file and the command line.

    Args:
        groups: name -> dataclass; keys are unique over all of them.
        path: a flat JSON or YAML file, or None.
        overrides: arguments such as ``key=value`` or ``--key value``; the config file may be among them.
        old_keys: names and values that are no longer ours and how to translate them, besides the ``OLD_KEYS`` of the
            groups.

    Returns:
        The filled instances by name, the origin of every key, and notices for the user.

    Raises:
        ConfigError: anything that is wrong, all of it in one text.
    """
    loaded = read_arguments(groups, path, overrides, old_keys)
    raise_problems(loaded.problems, loaded.path)
    return loaded.instances, loaded.origins, in_order_of_lines(loaded.notices)


def raise_problems(problems: Sequence[str], path: Path | None) -> None:
    """Raise one ConfigError for all problems; do nothing when there are none."""
    unique = in_order_of_lines(problems)
    if not unique:
        return
    if len(unique) == 1:
        raise ConfigError(unique[0])
    source = str(path) if path else "the command line"
    raise ConfigError(f"{len(unique)} problems in {source}:\n" + "\n".join(f"  {text}" for text in unique))


def read_arguments(
    groups: Mapping[str, type],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    old_keys: Mapping[str, OldKey] | None = None,
) -> Loaded:
    """Like ``load_arguments``, but return the problems instead of raising them (a file that cannot be read raises)."""
    reader = _Reader(groups, old_keys or {})
    override_types = {
        **reader.types,
        **{old: reader.type_of_old(old) for old in reader.old_keys if old not in reader.types},
    }
    paths, command_line = read_command_line(overrides, override_types, reader.problems)
    paths = ([str(path)] if path is not None else []) + paths
    if len(paths) > 1:
        reader.problems.append(
            f"{PLACE}: found {len(paths)} config files ({', '.join(paths)}); a run takes one. "
            "Join them in one file, or give single keys as key=value."
        )
    file = find_document(paths[0]) if paths else None
    if file is not None and file != Path(paths[0]):
        reader.notices.append(f"{paths[0]}: there is no file of this name; {file} is read in its place.")
    document = read_document(file) if file is not None else []
    given = reader.canonical(_one_for_each_key(document, reader.problems))
    overruling = reader.canonical(_last_for_each_key(command_line, reader.repeatable, reader.notices))
    reader.check_overruled([item for key, item in given.items() if key in overruling])
    given.update(overruling)
    instances, origins = reader.fill(given)
    return Loaded(instances, origins, reader.notices, reader.problems, reader.doubtful, file)


def _one_for_each_key(entries: list[Entry], problems: list[str]) -> list[Entry]:
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.key in first:
            line = first[entry.key].where.rpartition(":")[2]
            problems.append(f"{entry.where}: {entry.key} is given twice; it stands in line {line} already. Keep one.")
        else:
            first[entry.key] = entry
    return list(first.values())


def _last_for_each_key(entries: list[Entry], repeatable: set[str], notices: list[str]) -> list[Entry]:
    last: dict[str, Entry] = {}
    for entry in entries:
        before = last[entry.key].value if entry.key in last else None
        if entry.key in repeatable and isinstance(before, list) and isinstance(entry.value, list):
            entry = Entry(entry.key, before + entry.value, entry.where)
        elif entry.key in last and not _same(before, entry.value):
            notices.append(
                f"{PLACE}: {entry.key} is given more than once; the last one counts: {describe_found(entry.value)}."
            )
        last[entry.key] = entry
    return list(last.values())


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


class _Reader:
    """Knows the keys of the groups and collects notices and problems while entries are read."""

    def __init__(self, groups: Mapping[str, type], old_keys: Mapping[str, OldKey]) -> None:
        self.groups = groups
        self.specs: dict[str, dataclasses.Field] = {}
        self.types: dict[str, Any] = {}
        self.repeatable: set[str] = set()
        self.old_keys: dict[str, OldKey] = {}
        for cls in groups.values():
            hints = field_types(cls)
            for spec in dataclasses.fields(cls):
                if spec.name in self.specs:
                    raise TypeError(f"key {spec.name!r} is declared in two groups")
                self.specs[spec.name] = spec
                self.types[spec.name] = hints[spec.name]
                if spec.metadata.get("repeatable"):
                    self.repeatable.add(spec.name)
                for alias in spec.metadata.get("aliases", ()):
                    self.old_keys[alias] = same_meaning(spec.name)
            self.old_keys.update(getattr(cls, "OLD_KEYS", {}))
        self.old_keys.update(old_keys)
        self.notices: list[str] = []
        self.problems: list[str] = []
        self.doubtful: set[str] = set()

    def type_of_old(self, old: str) -> Any:
        """Type by which an old name's value is read from the command line: that of the key it is renamed to."""
        return self.types.get(self.old_keys[old].new or "", object)

    def canonical(self, entries: list[Entry]) -> dict[str, _Given]:
        """Translate old names and values; report unknown names and contradictions within one source."""
        found: dict[str, _Given] = {}
        for entry in entries:
            for given in self._translate(entry):
                other = found.get(given.key)
                if other is None:
                    found[given.key] = given
                elif not _same(other.value, given.value):
                    self.doubtful.add(given.key)
                    self.problems.append(
                        f"{entry.where}: {entry.key}: {describe_found(entry.value)} contradicts "
                        f"{other.entry.key}: {describe_found(other.entry.value)} ({other.entry.where}); both set "
                        f"{given.key}. Keep one of them."
                    )
        return found

    def _translate(self, entry: Entry) -> list[_Given]:
        old = self.old_keys.get(entry.key)
        if old is None:
            if entry.key in self.specs:
                return [_Given(entry.key, entry.value, entry)]
            self._unknown(entry)
            return []
        try:
            result: Translation = old.translate(entry.value)
        except Untranslatable as error:
            self.doubtful.update(old.touches)
            self.problems.append(f"{entry.where}: {entry.key}: found {describe_found(entry.value)}; {error}")
            return []
        if result.notice:
            self.notices.append(f"{entry.where}: {entry.key}: {result.notice}")
        return [_Given(key, value, entry) for key, value in result.values.items()]

    def _unknown(self, entry: Entry) -> None:
        names = [*self.specs, *(old for old, known in self.old_keys.items() if known.new)]
        near = difflib.get_close_matches(entry.key, names, n=1, cutoff=0.6)
        if not near and entry.key.replace("-", "_").lower() in self.specs:
            near = [entry.key.replace("-", "_").lower()]
        if isinstance(entry.value, dict):
            hint = f" The file is flat: write the keys under {entry.key!r} at the top level."
        elif near:
            old = self.old_keys.get(near[0])
            name = old.new if old and old.new and near[0] not in self.specs else near[0]
            self.doubtful.add(name)
            hint = f" Did you mean {name!r}?"
        else:
            hint = " All keys stand in docs/config.md."
        self.problems.append(f"{entry.where}: unknown key {entry.key!r}.{hint}")

    def fill(self, given: Mapping[str, _Given]) -> tuple[dict[str, Any], dict[str, Origin]]:
        """Check every value by its key and build the instances; a wrong value is replaced by the default."""
        values: dict[str, Any] = {}
        origins = {key: DEFAULT for key in self.specs}
        for key, item in given.items():
            fits, value = self._checked(item)
            if not fits:
                continue
            values[key] = value
            note = f"written as {item.entry.key}" if item.entry.key != key else ""
            origins[key] = (
                Origin("command line", note=note)
                if item.entry.where == PLACE
                else Origin("file", item.entry.where, note)
            )
            self._remark(item, self.specs[key], value)
        instances = {
            name: cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})
            for name, cls in self.groups.items()
        }
        return instances, origins

    def check_overruled(self, items: list[_Given]) -> None:
        """Report values of the file that are wrong although the command line replaces them."""
        for item in items:
            self._checked(item)

    def _checked(self, item: _Given) -> tuple[bool, Any]:
        """Return whether the value fits its key, and the value as the key wants it; report it when it does not fit."""
        spec = self.specs[item.key]
        try:
            if item.value == "None" and type(None) in members(self.types[item.key]):
                raise BadValue  # what Python's nothing is called would be taken for a name or a path
            value = check_type(item.value, self.types[item.key])
            check_range(value, spec)
        except BadValue:
            self.doubtful.add(item.key)
            self.problems.append(self._bad_value(item, spec))
            return False, None
        return True, value

    def _bad_value(self, item: _Given, spec: dataclasses.Field) -> str:
        allowed = describe_allowed(spec, self.types[spec.name])
        text = f"{item.entry.where}: {item.entry.key}: found {describe_found(item.value)}; allowed: {allowed}."
        if item.value == "None" and type(None) in members(self.types[spec.name]):
            text += " To leave the key unset write null."
        literals = [str(c) for c in _choices(self.types[spec.name])]
        near = difflib.get_close_matches(str(item.value), literals, n=1) if isinstance(item.value, str) else []
        if near:
            text += f" Did you mean {near[0]!r}?"
        return text

    def _remark(self, item: _Given, spec: dataclasses.Field, value: Any) -> None:
        """Say when a key changes nothing, and refuse one that asks for what this version does not have."""
        if value == default_of(spec):
            return
        place = f"{item.entry.where}: {item.entry.key}"
        if spec.metadata.get("no_effect"):
            self.notices.append(f"{place} has no effect: {spec.metadata['no_effect']}.")
        unbuilt = spec.metadata.get("unbuilt")
        if unbuilt and not any(value is n or (type(value) is type(n) and value == n) for n in NEUTRAL):
            self.doubtful.add(spec.name)
            neutral = "1" if isinstance(default_of(spec), int) and default_of(spec) == -1 else _plain(default_of(spec))
            self.problems.append(
                f"{place}: found {describe_found(value)}; {unbuilt} is not built yet in this version. "
                f"Remove the key or set it to {neutral}."
            )


def _plain(value: Any) -> str:
    return describe_found(value).rpartition(" (")[0] or "null"


def in_order_of_lines(notices: Sequence[str]) -> list[str]:
    """Return notices or problems by their line in the file, those without a line last; repeated ones once."""

    def line(text: str) -> float:
        match = re.match(r"(?:[^\n]*?\.(?:json|ya?ml)):(\d+)(?:: |, | and )", text)
        return int(match[1]) if match else math.inf

    return sorted(dict.fromkeys(notices), key=line)


def _choices(tp: Any) -> tuple[Any, ...]:
    return tuple(c for m in members(tp) if typing.get_origin(m) is typing.Literal for c in typing.get_args(m))
