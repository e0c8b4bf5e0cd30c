"""Rows come with the exact line they begin on, from every kind of file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.data.containers import Row, container_of, read_rows
from paddlesft.data.problems import Problem
from paddlesft.errors import DataError

ROWS = [{"src": "a\nb", "tgt": "你好"}, {"src": "c", "tgt": "d"}, {"src": "e", "tgt": "f"}]


def found(path: Path) -> list[tuple[int, dict]]:
    rows = list(read_rows(path))
    assert all(isinstance(row, Row) for row in rows), rows
    return [(row.source.line, row.value) for row in rows]


def problems(path: Path) -> list[str]:
    return [str(row).replace(str(path), path.name) for row in read_rows(path) if isinstance(row, Problem)]


def test_json_lines(write: Callable[..., Path]) -> None:
    path = write("a.jsonl", json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n" + json.dumps(ROWS[2]))
    assert found(path) == [(1, ROWS[0]), (3, ROWS[1]), (4, ROWS[2])]


def test_json_lines_inside_a_json_file_as_paddlenlp_has_them(write: Callable[..., Path]) -> None:
    path = write("train.json", "\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n")
    assert found(path) == [(1, ROWS[0]), (2, ROWS[1]), (3, ROWS[2])]


@pytest.mark.parametrize(("indent", "lines"), [(None, [1, 1, 1]), (2, [2, 6, 10])])
def test_arrays_in_one_line_and_pretty_printed(
    write: Callable[..., Path], indent: int | None, lines: list[int]
) -> None:
    path = write("a.json", json.dumps(ROWS, indent=indent, ensure_ascii=False))
    assert found(path) == list(zip(lines, ROWS))


def test_pretty_printed_objects_one_after_the_other(write: Callable[..., Path]) -> None:
    path = write("a.json", "\n\n".join(json.dumps(row, indent=1) for row in ROWS))
    assert [line for line, _ in found(path)] == [1, 6, 11]


def test_windows_line_ends_count_once(write: Callable[..., Path]) -> None:
    path = write("a.json", json.dumps(ROWS, indent=2).replace("\n", "\r\n").encode())
    assert [line for line, _ in found(path)] == [2, 6, 10]


def test_csv_rows_that_span_lines(write: Callable[..., Path]) -> None:
    path = write("a.csv", 'question,answer\n"two\nlines","x, y"\n\nq2,a2\n')
    assert found(path) == [(2, {"question": "two\nlines", "answer": "x, y"}), (5, {"question": "q2", "answer": "a2"})]


def test_csv_with_a_wrong_number_of_cells(write: Callable[..., Path]) -> None:
    path = write("a.csv", "question,answer\nq,a\nq,a,b\nq\n")
    assert problems(path) == [
        "a.csv:3  found 3 cells; allowed: 2, one for each column of the first line",
        "a.csv:4  found 1 cell; allowed: 2, one for each column of the first line",
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_gzip(write: Callable[..., Path], name: str) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS) if "jsonl" in name else json.dumps(ROWS)
    path = write(name, gzip.compress(text.encode()))
    assert [row for _, row in found(path)] == ROWS


def test_damaged_gzip(write: Callable[..., Path]) -> None:
    path = write("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000)[:30])
    assert "found a damaged gzip file" in problems(path)[0]
    whole = bytearray(gzip.compress(b'{"a": 1}\n' * 1000))
    whole[20] ^= 0xFF
    assert "found a damaged gzip file" in problems(write("c.jsonl.gz", bytes(whole)))[0]
    path = write("b.jsonl.gz", b'{"a": 1}\n')
    assert "found a damaged gzip file" in problems(path)[0]


def test_parquet_counts_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    rows = list(read_rows(path))
    assert [row.value for row in rows] == ROWS
    assert str(rows[1].source) == f"{path}:row 2"


def test_damaged_parquet(write: Callable[..., Path]) -> None:
    assert "found a file that cannot be read" in problems(write("a.parquet", b"no parquet"))[0]


def test_bad_lines_are_problems_and_the_rest_is_read(write: Callable[..., Path]) -> None:
    path = write("a.jsonl", '{"a": 1}\n{"a": \n[1]\n{"a": 2}\n')
    rows = list(read_rows(path))
    assert [type(row) for row in rows] == [Row, Problem, Problem, Row]
    assert problems(path) == [
        "a.jsonl:2  found text that is not JSON: Expecting value (column 7); allowed: one complete JSON object",
        "a.jsonl:3  found the list [1]; allowed: an object with named fields",
    ]


def test_a_fault_inside_an_array_names_its_line(write: Callable[..., Path]) -> None:
    path = write("a.json", '[\n  {\n    "a": 1\n  },\n  {\n    "a": oops\n  }\n]')
    assert problems(path) == [
        "a.json:6  found text that is not JSON: Expecting value (column 10, in the row that begins on line 5); "
        "the rest was not read; allowed: one complete JSON object"
    ]
    path = write("b.json", '[{"a": 1}\n{"a": 2}]')
    assert problems(path) == [
        'b.json:2  found "{\\"a\\": 2}]" between two rows; the rest was not read; '
        "allowed: a comma, or ] at the end of the array"
    ]
    path = write("c.json", '[{"a": 1},\n')
    assert problems(path) == [
        "c.json:2  found the end of the file inside the array; allowed: ] at the end of the array"
    ]


def test_bytes_that_are_not_utf8(write: Callable[..., Path]) -> None:
    path = write("a.jsonl", b'{"a": 1}\n' + '{"a": "你好"}'.encode("gbk"))
    assert problems(path)[0].startswith("a.jsonl:2  found bytes that are not UTF-8")


def test_names_that_an_object_has_twice(write: Callable[..., Path]) -> None:
    path = write("a.jsonl", '{"src": "a", "src": "b"}\n{"src": "a"}\n{"m": [{"role": 1, "role": 2}]}\n')
    assert problems(path) == [
        "a.jsonl:1  field 'src': found this name twice in one object; allowed: each name once",
        "a.jsonl:3  field 'role': found this name twice in one object; allowed: each name once",
    ]
    path = write("b.json", '[\n{"a": 1},\n{"a": 1,\n"a": 2}\n]')
    assert problems(path) == ["b.json:3  field 'a': found this name twice in one object; allowed: each name once"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_values_that_python_cannot_read(write: Callable[..., Path], name: str) -> None:
    rest = "; the rest was not read" if name == "a.json" else ""
    path = write(name, '{"a": ' + "9" * 5000 + "}\n")
    assert problems(path)[0].startswith(f"{name}:1  found a value that cannot be read: Exceeds the limit (4300")
    path = write(name, '{"a": ' + "[" * 100_000 + "}\n")
    assert problems(path) == [f"{name}:1  found values nested too deeply{rest}; allowed: one complete JSON object"]


def test_text_behind_an_array_is_not_passed_over(write: Callable[..., Path]) -> None:
    path = write("a.json", '[\n{"a": 1}\n]\n[{"a": 2}]')
    assert problems(path) == [
        'a.json:4  found "[{\\"a\\": 2}]" behind the array; allowed: one array, or one object in each line'
    ]


def test_csv_that_is_not_one(write: Callable[..., Path]) -> None:
    path = write("a.csv", 'question,answer\nq,a\n"q,a\nq,a\n')
    assert problems(path) == [
        'a.csv:3  found a quoted cell that never ends; allowed: a " at the end of each cell that begins with one'
    ]
    path = write("b.csv", 'question,answer\n"q"x,a\nq,a\n')
    assert problems(path)[0].startswith("b.csv:2  found a cell that is not quoted right")
    path = write("c.csv", "question,question,answer\na,b,c\n")
    assert problems(path) == ['c.csv:1  found two columns with the name "question"; allowed: each name once']
    path = write("d.csv", "question;answer\na;b\n")
    assert problems(path) == [
        'd.csv:1  found one column "question;answer", so cells are separated by ";"; allowed: cells separated by commas'
    ]


def test_parquet_without_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"src": pyarrow.array([], pyarrow.string())}), path)
    assert list(read_rows(path)) == []


def test_unknown_endings_and_missing_files(write: Callable[..., Path], tmp_path: Path) -> None:
    assert container_of(Path("X.JSONL.GZ")) == ".jsonl.gz"
    with pytest.raises(DataError, match=r"found the name 'a.txt'; allowed endings: .json, .jsonl, .csv, .parquet"):
        list(read_rows(write("a.txt", "x")))
    with pytest.raises(DataError, match="does not exist"):
        list(read_rows(tmp_path / "no.jsonl"))
