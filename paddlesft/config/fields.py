"""How a config key is declared: one line with its default, its help and what may be put there.

Help pages, the reference in docs/ and the text of errors are all made from these declarations, so a key is described in
exactly one place. Allowed names are written as ``Literal`` types, allowed numbers as ranges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

# Values that ask for nothing, whatever the key: a key that is not built yet may be set to them.
NEUTRAL = (None, False, "", 0, 1, -1)

LARGEST_SEED = 2**32 - 1  # that numpy's generators take


def field(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    over: float | None = None,
    maximum: float | None = None,
    aliases: Sequence[str] = (),
    no_effect: str | None = None,
    unbuilt: str | None = None,
    secret: bool = False,
    repeatable: bool = False,
) -> Any:
    """Declare one config key.

    Args:
        default: value when nobody sets the key; lists and dicts are copied for each instance.
        help: one or two sentences for help pages and docs.
        minimum: smallest number allowed.
        over: the number must be greater than this.
        maximum: largest number allowed.
        aliases: old names of the key with the same meaning; a notice names the new one.
        no_effect: why setting the key changes nothing here; shown to whoever sets it to something but its default.
        unbuilt: the capability the key belongs to and that this version does not have; asking for it is an error.
        secret: the value is never shown or saved.
        repeatable: given several times on the command line, a list collects all that is given; else the last counts.

    Returns:
        A ``dataclasses.field``.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "over": over,
        "maximum": maximum,
        "aliases": tuple(aliases),
        "no_effect": no_effect,
        "unbuilt": unbuilt,
        "secret": secret,
        "repeatable": repeatable,
    }
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(spec: dataclasses.Field) -> Any:
    """Return the default value of a declared key."""
    if spec.default_factory is not dataclasses.MISSING:
        return spec.default_factory()
    return spec.default
