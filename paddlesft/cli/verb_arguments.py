"""The arguments of a verb that has a config dataclass of its own: help, strict loading, notices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

from paddlesft.errors import UserError

Config = TypeVar("Config")


def wants_help(argv: Sequence[str]) -> bool:
    """Tell whether the user asks for help instead of a run."""
    return "-h" in argv or "--help" in argv


def show_help(head: str, name: str, config: type) -> int:
    """Print a verb's help: its own words, then its keys.

    Args:
        head: what stands before the keys.
        name: the heading of the keys that only this verb has.
        config: the dataclass that declares them.

    Returns:
        0, the verb's exit code.
    """
    from paddlesft.config.reference import help_text

    print(f"{head}\n{help_text({name: config})}")
    return 0


def read_arguments(name: str, config: type[Config], argv: Sequence[str]) -> Config:
    """Read a verb's arguments; notices about them go to standard error.

    Args:
        name: as for ``show_help``.
        config: as for ``show_help``.
        argv: the arguments behind the verb, a config file among them if there is one.

    Returns:
        The filled dataclass.

    Raises:
        ConfigError: everything that is wrong, at once.
    """
    from paddlesft.config import load_arguments

    configs, _, notices = load_arguments({name: config}, overrides=argv)
    for notice in notices:
        print(notice, file=sys.stderr)
    return configs[name]


def split_positionals(argv: Sequence[str], names: tuple[str, str], usage: str) -> tuple[list[str], list[str]]:
    """Separate two paths, which stand together before or behind the options, from the options.

    Args:
        argv: the arguments behind the verb.
        names: what the two are called in the verb's usage.
        usage: that usage, for the error.

    Returns:
        The two paths and the options.

    Raises:
        UserError: there are not two of them.
    """
    argv = list(argv)
    if len(argv) >= 2 and not any(is_option(arg) for arg in argv[:2]):
        return argv[:2], argv[2:]
    if len(argv) >= 2 and not any(is_option(arg) for arg in argv[-2:]):
        return argv[-2:], argv[:-2]
    raise UserError(f"{' and '.join(names)} are needed; found: {' '.join(argv) or 'nothing'}. {usage}")


def is_option(arg: str) -> bool:
    """Tell options (``--key``, ``key=value``) from paths."""
    return arg.startswith("-") or "=" in arg.partition("/")[0]
