"""Reading JSON and YAML files into keys, values and line numbers.

JSON is strict JSON. YAML is read by the rules of YAML 1.2, so that ``no`` stays text and ``1e-4`` is a number.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from paddlesft.errors import ConfigError

_MOST_NODES = 100_000
_DEEPEST = 50
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Entry:
    """One key of a file or of the command line. ``where`` names the place: ``lora.json:4`` or ``command line``."""

    key: str
    value: Any
    where: str


def find_document(path: str | Path) -> Path:
    """Return the file that a config's path means.

    PaddleNLP's samples are called ``lora_argument.json``, ``ptq_argument.json`` and so on, other tools' ``lora.json``.
    Where no file has that name, it means ours beside it: ``lora.yaml``, ``ptq.json``.

    Args:
        path: as the user gave it.
    """
    path = Path(path)
    if path.suffix != ".json" or path.exists():
        return path
    name = path.name.removesuffix(".json").removesuffix("_argument")
    ours = (path.with_name(f"{name}{ending}") for ending in (".yaml", ".json"))
    return next((file for file in ours if file.is_file()), path)


def read_document(path: str | Path) -> list[Entry]:
    """Read a flat config file.

    Args:
        path: a ``.json``, ``.yaml`` or ``.yml`` file in UTF-8, with or without byte order mark.

    Returns:
        The keys in the order of the file, repeated keys included.

    Raises:
        ConfigError: the file is missing, is no JSON/YAML, or its top level is no mapping.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"{path}: a config file ends in .json, .yaml or .yml; found {suffix or 'no ending'!r}.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file (looked from {Path.cwd()}).") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: the file is not UTF-8 text. Save it as UTF-8.") from None
    if not text.strip():
        raise ConfigError(f"{path}: the file is empty. It needs keys such as model_name_or_path and output_dir.")
    read = _read_json if suffix == ".json" else _read_yaml
    return [Entry(key, value, f"{path}:{line}") for key, value, line in read(text, path)]


def _read_json(text: str, path: Path) -> list[tuple[str, Any, int]]:
    decoder = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)

    def line_of(position: int) -> int:
        return text.count("\n", 0, position) + 1

    def skip(position: int) -> int:
        return _SPACE.match(text, position).end()  # type: ignore[union-attr]

    def fail(position: int, what: str) -> ConfigError:
        column = position - (text.rfind("\n", 0, position) + 1) + 1
        return ConfigError(f"{path}:{line_of(position)}: not valid JSON at column {column}: {what}.")

    start = position = skip(0)
    if text[position : position + 1] != "{":
        raise ConfigError(f'{path}:{line_of(start)}: the file must hold one mapping: {{ "key": value, ... }}.')
    found: list[tuple[str, Any, int]] = []
    position = skip(position + 1)
    while text[position : position + 1] != "}":
        if found:
            if text[position : position + 1] != ",":
                raise fail(position, "a comma or the closing brace is missing before this place")
            comma, position = position, skip(position + 1)
            if text[position : position + 1] == "}":
                raise fail(comma, "a comma stands behind the last entry; remove it")
        here = position
        if text[here : here + 1] != '"':
            comment = text[here : here + 1] in ("/", "#")
            raise fail(
                here, "JSON has no comments; use YAML for a file with comments" if comment else _expected(text, here)
            )
        try:
            key, position = decoder.raw_decode(text, here)
            position = skip(position)
            if text[position : position + 1] != ":":
                raise fail(position, f'a colon is missing behind "{key}"')
            position = skip(position + 1)
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise fail(error.pos, _explain_json(error, text)) from None
        except _RefusedJSON as error:
            raise fail(position, str(error)) from None
        except (ValueError, RecursionError) as error:
            raise fail(position, f"this value cannot be read ({error})") from None
        found.append((key, value, line_of(here)))
        position = skip(position)
    rest = skip(position + 1)
    if rest != len(text):
        raise fail(rest, "there is text behind the closing brace")
    return found


class _RefusedJSON(ValueError):
    """Python's JSON reader would take it, a config file may not hold it."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RefusedJSON(f"{next(k for k in keys if keys.count(k) > 1)!r} is given twice in this mapping")
    return result


_BACKSLASH = "a backslash in double quotes begins an escape; write C:/path or C:\\\\path"


def _refuse_constant(name: str) -> None:
    raise _RefusedJSON(f"{name} is no number in JSON")


def _expected(text: str, position: int) -> str:
    if position >= len(text):
        return "the file ends before the closing brace"
    return 'expected a key in double quotes such as "lora_rank"'


def _explain_json(error: json.JSONDecodeError, text: str) -> str:
    if error.pos >= len(text):
        return "the file ends before the closing brace"
    rest = text[error.pos :]
    if rest.startswith("'"):
        return "text stands in double quotes in JSON, not in single quotes"
    for python, right in (("True", "true"), ("False", "false"), ("None", "null")):
        if rest.startswith(python):
            return f"write {right} instead of {python}"
    if "escape" in error.msg:
        return _BACKSLASH
    return error.msg[0].lower() + error.msg[1:]


def _read_yaml(text: str, path: Path) -> list[tuple[str, Any, int]]:
    import yaml

    try:
        root = yaml.compose(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else text[: getattr(error, "position", 0)].count("\n") + 1
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        if "'\\t'" in what:
            what = "a tab is used for indentation or before a value; YAML wants spaces"
        elif "escape" in what:
            what = _BACKSLASH + ", or 'single quotes'"
        elif "expected a single document" in str(error):
            what = "the file holds several documents (---); keep one"
        raise ConfigError(f"{path}:{line}: not valid YAML: {what}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply.") from None
    if root is None:
        raise ConfigError(f"{path}: the file holds only comments. It needs keys such as model_name_or_path.")
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1
        raise ConfigError(f"{path}:{line}: the file must hold one mapping, lines of the form `key: value`.")
    found = []
    build = _Builder(str(path))
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        key = build.value(key_node)
        if not isinstance(key, str):
            raise ConfigError(f"{path}:{line}: a key must be text; found {key!r}.")
        found.append((key, build.value(value_node), line))
    return found


def parse_yaml_value(text: str) -> Any:
    """Read one value in YAML form, e.g. ``1e-4``, ``[a, b]`` or ``{a: b}``; what is no YAML comes back as text."""
    import yaml

    try:
        node = yaml.compose(text, Loader=_loader())
        return None if node is None else _Builder("value").value(node)
    except (yaml.YAMLError, ConfigError, RecursionError):
        return text


class _Builder:
    """Turns composed nodes into values. Refuses cycles and expansions that explode."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes = 0
        self.open: list[int] = []

    def value(self, node: Any) -> Any:
        import yaml

        self.nodes += 1
        if id(node) in self.open or self.nodes > _MOST_NODES:
            raise self._error(node, "an alias (*) refers to itself or expands without end")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if len(self.open) >= _DEEPEST:
            raise self._error(node, "nested too deeply")
        self.open.append(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(entry) for entry in node.value]
            result: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self.value(key_node)
                if isinstance(key, list | dict):
                    raise self._error(key_node, "a key must be text")
                if key in result:
                    raise self._error(key_node, f"{key!r} is given twice in this mapping")
                result[key] = self.value(value_node)
            return result
        finally:
            self.open.pop()

    def _scalar(self, node: Any) -> Any:
        tag, text = node.tag.rpartition(":")[2], node.value
        if tag == "str":
            # A pair of escaped surrogates is one character; a lone one stays and is refused with its key.
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        try:
            if tag == "null":
                return None
            if tag == "bool":
                return {"true": True, "false": False}[text.lower()]
            if tag == "int":
                return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
            if tag == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            raise self._error(node, f"{text[:40]!r} cannot be read as {tag}") from None
        raise self._error(node, f"the tag {node.tag!r} is not supported; write the plain value")

    def _error(self, node: Any, what: str) -> ConfigError:
        return ConfigError(f"{self.name}:{node.start_mark.line + 1}: {what}.")


_loader_class: Any = None


def _loader() -> Any:
    """A YAML loader whose plain words are typed by YAML 1.2's core schema."""
    global _loader_class
    if _loader_class is None:
        import yaml

        class Loader(yaml.SafeLoader):
            yaml_implicit_resolvers: ClassVar[dict] = {}

        for tag, pattern, first in (
            ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
            ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
            ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
            (
                "float",
                r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
                list("-+0123456789."),
            ),
        ):
            Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), first)
        _loader_class = Loader
    return _loader_class
