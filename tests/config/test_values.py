"""Values are read by type and range, and nothing that could be a mistake is converted."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlesft.config.fields import field
from paddlesft.config.values import (
    BadValue,
    check_range,
    check_type,
    describe_allowed,
    describe_found,
    describe_type,
    parse_text,
)

TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"))
SCALARS = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: TEXT,
    type(None): st.none(),
}
ANYTHING = st.recursive(
    st.one_of(*SCALARS.values()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
TYPES = [
    bool,
    int,
    float,
    str,
    bool | None,
    int | None,
    float | None,
    str | None,
    list[str],
    list[int] | None,
    list[float] | None,
    str | list[str] | None,
    dict[str, str] | None,
    list[list[int]] | None,
    Literal["no", "steps"],
    Literal["no", "steps"] | None,
]


def fits(value: object, tp: object) -> bool:
    """The rule said a second time, as plainly as possible, for scalars."""
    return {
        bool: type(value) is bool,
        int: type(value) is int,
        float: type(value) in (int, float) and abs(value) < 1e308,  # type: ignore[arg-type]
        str: type(value) is str,
    }[tp]


@pytest.mark.parametrize("tp", [bool, int, float, str], ids=lambda tp: tp.__name__)
@given(value=st.one_of(*SCALARS.values()))
def test_a_scalar_is_accepted_exactly_when_it_has_the_declared_type(tp: type, value: object) -> None:
    if type(value) in (int, float) and abs(value) >= 1e308:
        return  # the edge of floats has its own test
    if fits(value, tp):
        result = check_type(value, tp)
        assert result == tp(value) and type(result) is tp
    else:
        with pytest.raises(BadValue):
            check_type(value, tp)


@pytest.mark.parametrize("tp", TYPES, ids=str)
@given(value=ANYTHING)
def test_accepted_values_are_fixed_points_and_refused_ones_say_what_is_allowed(tp: object, value: object) -> None:
    try:
        result = check_type(value, tp)
    except BadValue as error:
        assert str(error) == describe_type(tp)
    else:
        assert check_type(result, tp) == result
        kept = {type(value)} | ({list} if not isinstance(value, list) else set())
        assert type(result) in kept | ({float} if type(value) is int else set())


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_the_command_line_reads_back_every_float(value: float) -> None:
    assert check_type(parse_text(repr(value), float), float) == value


@given(value=st.integers())
def test_the_command_line_reads_back_every_integer(value: int) -> None:
    assert check_type(parse_text(str(value), int | None), int | None) == value


@given(value=TEXT.filter(lambda t: t not in ("null", "None")))
def test_the_command_line_leaves_text_alone(value: str) -> None:
    assert check_type(parse_text(value, str | None), str | None) == value


@given(values=st.lists(st.text("abcxyz_./:-", min_size=1), min_size=1, max_size=4))
def test_the_command_line_reads_lists_in_both_spellings(values: list[str]) -> None:
    assert check_type(parse_text(",".join(values), list[str]), list[str]) == values
    quoted = "[" + ", ".join(f'"{v}"' for v in values) + "]"
    assert check_type(parse_text(quoted, list[str]), list[str]) == values


@pytest.mark.parametrize(
    ("text", "tp", "value"),
    [
        ("true", bool, True),
        ("False", bool, False),
        ("TRUE", bool | None, True),
        ("1", bool, True),
        ("0", bool | None, False),
        ("null", int | None, None),
        ("None", str | None, None),
        ("null", str, "null"),
        ("1e-4", float, 1e-4),
        (".5", float, 0.5),
        ("3", float, 3.0),
        ("none", Literal["none", "lora"], "none"),
        ("[q_proj, v_proj]", str | list[str] | None, ["q_proj", "v_proj"]),
        (".*_proj", str | list[str] | None, ".*_proj"),
        ("0.8,0.2", list[float] | None, [0.8, 0.2]),
        ("[[1, 2], [5, 6]]", list[list[int]] | None, [[1, 2], [5, 6]]),
        ("{prompt: question}", dict[str, str] | None, {"prompt": "question"}),
        ("visualdl", list[str] | None, ["visualdl"]),
    ],
)
def test_command_line_values(text: str, tp: object, value: object) -> None:
    assert check_type(parse_text(text, tp), tp) == value


@pytest.mark.parametrize(
    ("text", "tp"),
    [
        ("yes", bool),
        ("2", bool),
        ("null", int),
        ("1.5", int),
        ("true", int),
        ("1,000", int),
        ("nan", float),
        (".inf", float),
        ("", int),
        ("[1, 2", list[int]),
        ("{a: [1]}", dict[str, str]),
    ],
)
def test_command_line_values_that_are_refused(text: str, tp: object) -> None:
    with pytest.raises(BadValue):
        check_type(parse_text(text, tp), tp)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**400])
def test_numbers_beyond_float_are_refused(value: float) -> None:
    with pytest.raises(BadValue):
        check_type(value, float)


@pytest.mark.parametrize("value", ["\ud800", "a\0b"])
def test_text_that_no_file_or_path_can_hold_is_refused(value: str) -> None:
    with pytest.raises(BadValue):
        check_type(value, str)


@pytest.mark.parametrize(
    ("limits", "good", "bad", "words"),
    [
        ({"minimum": 1}, [1, 7], [0, -1], "at least 1"),
        ({"over": 0}, [1e-9, 3.0], [0, -1.0], "greater than 0"),
        ({"minimum": 0, "maximum": 1}, [0, 0.5, 1], [-0.1, 1.1], "at least 0 and at most 1"),
        ({"minimum": 1}, [None, True, [1, 2], "x"], [[1, 0]], "at least 1"),
    ],
)
def test_ranges(limits: dict, good: list, bad: list, words: str) -> None:
    @dataclasses.dataclass
    class Group:
        key: float | None = field(None, "", **limits)

    spec = dataclasses.fields(Group)[0]
    for value in good:
        check_range(value, spec)
    for value in bad:
        with pytest.raises(BadValue, match=words):
            check_range(value, spec)
    assert describe_allowed(spec, float | None) == f"a number {words} or null"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true (a boolean)"),
        (8, "8 (an integer)"),
        (0.1, "0.1 (a number)"),
        ("8", '"8" (text)'),
        ([1], "[1] (a list)"),
        ({"a": 1}, '{"a": 1} (a mapping)'),
        ("x" * 80, '"' + "x" * 56 + "... (text)"),
    ],
)
def test_found_values_are_shown_as_in_the_file_with_their_type(value: object, words: str) -> None:
    assert describe_found(value) == words


@pytest.mark.parametrize(
    ("tp", "words"),
    [
        (bool, "true or false"),
        (int | None, "an integer or null"),
        (Literal["a", "b"], "one of a, b"),
        (list[str] | None, "a list of texts or null"),
        (dict[str, str], "a mapping of names to texts"),
        (list[list[int]], "a list of entries, each a list of integers"),
        (str | list[str] | None, "text or a list of texts or null"),
    ],
)
def test_types_in_words(tp: object, words: str) -> None:
    assert describe_type(tp) == words
