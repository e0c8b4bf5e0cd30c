"""Declarations of keys."""

from __future__ import annotations

import dataclasses

import pytest

from paddlesft.config import RUN_GROUPS
from paddlesft.config.fields import NEUTRAL, default_of, field
from paddlesft.config.values import BadValue, check_range, check_type, field_types
from paddlesft.config.verbs import VERB_GROUPS


@dataclasses.dataclass
class Example:
    names: list[str] = field(["a"], "Names.")
    size: int = field(3, "Size.", minimum=1, aliases=("width",))


def test_lists_are_copied_for_each_instance() -> None:
    one, two = Example(), Example()
    one.names.append("b")
    assert two.names == ["a"] and default_of(dataclasses.fields(Example)[0]) == ["a"]


def test_metadata_holds_what_was_declared() -> None:
    spec = dataclasses.fields(Example)[1]
    assert default_of(spec) == 3
    assert (spec.metadata["minimum"], spec.metadata["maximum"], spec.metadata["aliases"]) == (1, None, ("width",))


@pytest.mark.parametrize("cls", [*RUN_GROUPS.values(), *VERB_GROUPS.values()], ids=lambda cls: cls.__name__)
def test_every_default_fits_its_own_declaration(cls: type) -> None:
    for spec in dataclasses.fields(cls):
        try:
            value = check_type(default_of(spec), field_types(cls)[spec.name])
            check_range(value, spec)
        except BadValue as error:
            pytest.fail(f"{spec.name}: the default {default_of(spec)!r} is refused: {error}")
        assert type(value) is type(default_of(spec)), f"{spec.name}: write the default as a {type(value).__name__}"


@pytest.mark.parametrize("cls", [*RUN_GROUPS.values()], ids=lambda cls: cls.__name__)
def test_what_is_not_built_yet_is_off_by_default(cls: type) -> None:
    for spec in dataclasses.fields(cls):
        if spec.metadata["unbuilt"]:
            assert default_of(spec) in NEUTRAL, spec.name
