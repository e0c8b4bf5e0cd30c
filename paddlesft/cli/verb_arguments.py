"""The arguments of a verb that has a config dataclass of its own: help, strict loading, notices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

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
