"""Files become keys, values and lines; a file that cannot be read says where and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddlesft.config.documents import find_document, parse_yaml_value, read_document
from paddlesft.errors import ConfigError

NAMES = st.text("abcdefghijklmnop_", min_size=1, max_size=8)
TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def document(tmp_path: Path, text: str | bytes, name: str = "run.json") -> list[tuple[str, object, int]]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return [(e.key, e.value, int(e.where.rpartition(":")[2])) for e in read_document(path)]


def error_of(tmp_path: Path, text: str | bytes, name: str = "run.json") -> str:
    with pytest.raises(ConfigError) as caught:
        document(tmp_path, text, name)
    return str(caught.value).replace(str(tmp_path) + "/", "")


@SHARED_FOLDER
@given(content=st.dictionaries(NAMES, VALUES, max_size=6), indent=st.sampled_from([None, 0, 2]))
def test_json_is_read_as_pythons_own_reader_does(tmp_path: Path, content: dict, indent: int | None) -> None:
    text = json.dumps(content, indent=indent)
    found = document(tmp_path, text)
    assert {key: value for key, value, _ in found} == content
    for key, _, line in found:
        assert f"{json.dumps(key)}:" in text.splitlines()[line - 1]


@SHARED_FOLDER
@given(content=st.dictionaries(NAMES, SCALARS, min_size=1, max_size=6))
def test_json_lines_are_yaml_too(tmp_path: Path, content: dict) -> None:
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in content.items())
    found = document(tmp_path, text, "run.yaml")
    assert [(key, value) for key, value, _ in found] == list(content.items())
    assert [line for _, _, line in found] == list(range(1, len(content) + 1))


def test_json_with_tabs_windows_lines_and_byte_order_mark(tmp_path: Path) -> None:
    assert document(tmp_path, b'\xef\xbb\xbf{\r\n\t"a":\t1,\r\n\t"b": [1,\r\n\t2]\r\n}\r\n') == [
        ("a", 1, 2),
        ("b", [1, 2], 3),
    ]


def test_yaml_with_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    assert document(tmp_path, b"\xef\xbb\xbf# head\r\na: 1\r\nb: x\r\n", "run.yml") == [("a", 1, 2), ("b", "x", 3)]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("12", 12),
        ("-1", -1),
        ("0x10", 16),
        ("0o10", 8),
        ("010", 10),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ('"1e-4"', "1e-4"),
        ("'true'", "true"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("v1.2.3", "v1.2.3"),
        ("[q, 1, no]", ["q", 1, "no"]),
        ("{a: b}", {"a": "b"}),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
    ],
)
def test_yaml_words_have_the_types_of_yaml_1_2(tmp_path: Path, written: str, value: object) -> None:
    (found,) = document(tmp_path, f"key: {written}\n", "run.yaml")
    assert found == ("key", value, 1) and type(found[1]) is type(value)


def test_comments_of_sections_are_only_comments(tmp_path: Path) -> None:
    text = "### data\n\n# base\na: 1  # why\n### model\nb: 2\n"
    assert document(tmp_path, text, "run.yaml") == [("a", 1, 4), ("b", 2, 6)]


def test_repeated_keys_are_all_returned(tmp_path: Path) -> None:
    assert document(tmp_path, '{"a": 1,\n"a": 2}') == [("a", 1, 1), ("a", 2, 2)]
    assert document(tmp_path, "a: 1\na: 2\n", "run.yaml") == [("a", 1, 1), ("a", 2, 2)]


def test_anchors_are_resolved(tmp_path: Path) -> None:
    assert document(tmp_path, "a: &x [1, 2]\nb: *x\n", "run.yaml") == [("a", [1, 2], 1), ("b", [1, 2], 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,}', "run.json:1: not valid JSON at column 8: a comma stands behind the last entry; remove it."),
        (
            '{"a": 1\n "b": 2}',
            "run.json:2: not valid JSON at column 2: a comma or the closing brace is missing before this place.",
        ),
        ('{"a" 1}', 'run.json:1: not valid JSON at column 6: a colon is missing behind "a".'),
        (
            '{"a": 1',
            "run.json:1: not valid JSON at column 8: a comma or the closing brace is missing before this place.",
        ),
        ('{"a": ', "run.json:1: not valid JSON at column 7: the file ends before the closing brace."),
        ('{"a": 1,\n', "run.json:2: not valid JSON at column 1: the file ends before the closing brace."),
        ("{'a': 1}", 'run.json:1: not valid JSON at column 2: expected a key in double quotes such as "lora_rank".'),
        (
            "{\"a\": 'x'}",
            "run.json:1: not valid JSON at column 7: text stands in double quotes in JSON, not in single quotes.",
        ),
        (
            '{\n // c\n"a": 1}',
            "run.json:2: not valid JSON at column 2: JSON has no comments; use YAML for a file with comments.",
        ),
        ('{"a": True}', "run.json:1: not valid JSON at column 7: write true instead of True."),
        ('{"a": None}', "run.json:1: not valid JSON at column 7: write null instead of None."),
        ('{"a": .5}', "run.json:1: not valid JSON at column 7: expecting value."),
        ('{"a": NaN}', "run.json:1: not valid JSON at column 7: NaN is no number in JSON."),
        ('{"a": 1} x', "run.json:1: not valid JSON at column 10: there is text behind the closing brace."),
        ('{"a": {"b": 1, "b": 2}}', "run.json:1: not valid JSON at column 7: 'b' is given twice in this mapping."),
        ("[1]", 'run.json:1: the file must hold one mapping: { "key": value, ... }.'),
        ("3", 'run.json:1: the file must hold one mapping: { "key": value, ... }.'),
        ("", "run.json: the file is empty. It needs keys such as model_name_or_path and output_dir."),
        ("\ufeff \n", "run.json: the file is empty. It needs keys such as model_name_or_path and output_dir."),
    ],
)
def test_json_errors(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, text) == message


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_no_reader_takes_is_an_error_not_a_crash(tmp_path: Path, text: str) -> None:
    assert "run.json:1: not valid JSON at column 7: this value cannot be read" in error_of(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a:\n\tb: 1\n",
            "run.yaml:2: not valid YAML: a tab is used for indentation or before a value; YAML wants spaces.",
        ),
        ("a: [1, 2\nb: 3\n", "run.yaml:2: not valid YAML: expected ',' or ']', but got ':'."),
        ("a: 1\n b: 2\n", "run.yaml:2: not valid YAML: mapping values are not allowed here."),
        ("a: 1\n---\nb: 2\n", "run.yaml:2: not valid YAML: the file holds several documents (---); keep one."),
        ("- a\n- b\n", "run.yaml:1: the file must hold one mapping, lines of the form `key: value`."),
        ("hello\n", "run.yaml:1: the file must hold one mapping, lines of the form `key: value`."),
        ("# nothing\n", "run.yaml: the file holds only comments. It needs keys such as model_name_or_path."),
        ("1: a\n", "run.yaml:1: a key must be text; found 1."),
        ("a: {[x]: 1}\n", "run.yaml:1: a key must be text."),
        ("a: {b: 1, b: 2}\n", "run.yaml:1: 'b' is given twice in this mapping."),
        ("a: &x [*x]\n", "run.yaml:1: an alias (*) refers to itself or expands without end."),
        ("a: *x\n", "run.yaml:1: not valid YAML: found undefined alias 'x'."),
        ("x: 1\na: !mine 5\n", "run.yaml:2: the tag '!mine' is not supported; write the plain value."),
        ("a: !!int x\n", "run.yaml:1: 'x' cannot be read as int."),
        ("a: 1\nb: \x07\n", "run.yaml:2: not valid YAML: special characters are not allowed."),
        ("a: " + "9" * 5000, "run.yaml:1: '" + "9" * 40 + "' cannot be read as int."),
    ],
)
def test_yaml_errors(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, text, "run.yaml") == message


def test_yaml_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 9)]
    assert "expands without end" in error_of(tmp_path, "\n".join(levels), "run.yaml")


@pytest.mark.parametrize("depth", [60, 3000])
def test_yaml_nested_too_deeply_is_refused(tmp_path: Path, depth: int) -> None:
    message = error_of(tmp_path, "a: " + "[" * depth + "]" * depth, "run.yaml")
    assert message in ("run.yaml:1: nested too deeply.", "run.yaml: not valid YAML: nested too deeply.")


def test_missing_file_names_where_it_was_looked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_document("no.json")
    assert str(caught.value) == f"no.json: there is no such file (looked from {tmp_path})."


def test_a_sample_name_of_paddlenlp_means_the_file_beside_it(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "lora_argument.json", tmp_path / "lora.yaml"
    assert find_document(theirs) == theirs  # neither is there: the error names what was asked for
    ours.write_text("lora: true\n")
    assert find_document(theirs) == ours
    assert find_document(tmp_path / "lora.json") == ours
    assert find_document(tmp_path / "lora.yml") == tmp_path / "lora.yml"
    theirs.write_text("{}")
    assert find_document(theirs) == theirs


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "d.json").mkdir()
    with pytest.raises(ConfigError, match=r"d\.json: cannot be read: Is a directory\."):
        read_document(tmp_path / "d.json")


@pytest.mark.parametrize(("name", "ending"), [("run.toml", "'.toml'"), ("run", "'no ending'")])
def test_other_endings_are_refused(tmp_path: Path, name: str, ending: str) -> None:
    message = error_of(tmp_path, "a: 1", name)
    assert message == f"{name}: a config file ends in .json, .yaml or .yml; found {ending}."


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    message = error_of(tmp_path, "a: 1\nb: é\n".encode("latin-1"), "run.yaml")
    assert message == "run.yaml:2: the file is not UTF-8 text. Save it as UTF-8."


@pytest.mark.parametrize("text", ["[1", "a: b: c", "*x", "{a: 1, a: 2}", "!mine 3", "[" * 1500])
def test_a_single_value_that_is_no_yaml_stays_text(text: str) -> None:
    assert parse_yaml_value(text) == text


def test_windows_paths_with_single_backslashes(tmp_path: Path) -> None:
    why = r"a backslash in double quotes begins an escape; write C:/path or C:\\path"
    assert error_of(tmp_path, '{"a": "C:\\Users"}') == f"run.json:1: not valid JSON at column 10: {why}."
    assert error_of(tmp_path, 'a: "C:\\Users"', "run.yaml") == f"run.yaml:1: not valid YAML: {why}, or 'single quotes'."
    assert document(tmp_path, "a: C:\\Users", "run.yaml") == [("a", "C:\\Users", 1)]
