"""The command line of a verb: at most one config file, and keys in any of the usual spellings."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from paddlesft.config.documents import Entry
from paddlesft.config.values import members, parse_text

PLACE = "command line"
CONFIG_ENDINGS = (".json", ".yaml", ".yml")


def read_command_line(
    tokens: Sequence[str], types: Mapping[str, Any], problems: list[str]
) -> tuple[list[str], list[Entry]]:
    """Read ``key=value``, ``--key value``, ``--key=value``, ``--flag`` and the config file's path.

    Args:
        tokens: the arguments behind the verb.
        types: type of each known key, old names included; decides how a value is read.
        problems: receives the text of each error.

    Returns:
        Paths of config files (bare words that end in .json, .yaml or .yml), and the keys in the order given.
    """
    paths: list[str] = []
    entries: list[Entry] = []
    queue = list(tokens)
    while queue:
        token = queue.pop(0)
        if _is_option(token):
            key, equals, text = token[2:].partition("=")
            tp = types.get(key, str)
            if equals:
                value = parse_text(text, tp)
            elif bool in members(tp) and not (queue and _is_bare_word(queue[0])):
                value = True
            elif queue and not _is_option(queue[0]):
                value = parse_text(queue.pop(0), tp)
                if any(typing.get_origin(member) is list for member in members(tp)):
                    value = _rest_of_list(value, queue, tp)
            elif key in types:
                problems.append(f"{PLACE}: --{key} needs a value behind it.")
                continue
            else:
                value = True
            entries.append(Entry(key, value, PLACE))
        elif "=" in token and not token.startswith("-"):
            key, _, text = token.partition("=")
            entries.append(Entry(key, parse_text(text, types.get(key, str)), PLACE))
        elif token.lower().endswith(CONFIG_ENDINGS):
            paths.append(token)
        else:
            problems.append(
                f"{PLACE}: found {token!r}; allowed: one config file ({', '.join(CONFIG_ENDINGS)}), key=value, "
                "--key value, --key=value, and --key alone for true."
            )
    return paths, entries


def _is_option(token: str) -> bool:
    return token.startswith("--") and len(token) > 2


def _is_bare_word(token: str) -> bool:
    """Neither an option, nor ``key=value``, nor a config file: behind a flag it can only be meant as its value."""
    return not token.startswith("-") and "=" not in token and not token.lower().endswith(CONFIG_ENDINGS)


def _rest_of_list(value: Any, queue: list[str], tp: Any) -> Any:
    """Take ``--report_to visualdl tensorboard`` as one list, as users of argparse write it."""
    values = value if isinstance(value, list) else [value]
    more = False
    while queue and not queue[0].startswith("--") and "=" not in queue[0]:
        entry = parse_text(queue.pop(0), tp)
        values = values + (entry if isinstance(entry, list) else [entry])
        more = True
    return values if more else value
