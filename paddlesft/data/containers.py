"""Files to rows: json, jsonl, csv, parquet, and .gz of the text ones, each row with the line it begins on."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from paddlesft.data.conversation import Source
from paddlesft.data.problems import Problem, shown
from paddlesft.errors import DataError

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".json.gz", ".jsonl.gz", ".csv.gz")


@dataclass(frozen=True)
class Row:
    """One row as the file has it."""

    source: Source
    value: dict[str, Any]


def container_of(path: Path) -> str | None:
    """Return the file's container suffix (``.jsonl.gz`` counts as one), or None when it is none we read."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)


def read_rows(path: Path) -> Iterator[Row | Problem]:
    """Yield the rows of one file in order, and a ``Problem`` where something is not a row.

    Args:
        path: a file with one of ``SUFFIXES``. A ``.json`` file may be an array, in one line or pretty-printed, or JSON
            lines, as PaddleNLP's data sets have it.

    Raises:
        DataError: the suffix is not known or the file is missing.
    """
    suffix = container_of(path)
    if suffix is None:
        raise DataError(
            f"Cannot tell what kind of file {path} is: found the name {path.name!r}; allowed endings: "
            f"{', '.join(SUFFIXES)}. Rename or convert the file."
        )
    if not path.is_file():
        raise DataError(f"The data file {path} does not exist.")
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        with _open_text(path) as stream:
            if suffix.startswith(".csv"):
                yield from _csv(path, stream)
            elif suffix.startswith(".jsonl"):
                yield from _json_lines(path, stream)
            else:
                yield from _json(path, stream)
    except UnicodeDecodeError as error:
        line = _line_of_bad_bytes(path)
        bad = shown(repr(error.object[error.start : error.start + 4]))
        yield Problem(Source(str(path), line), "", f"bytes that are not UTF-8 ({bad})", "a text file in UTF-8")
    except (gzip.BadGzipFile, EOFError) as error:
        yield Problem(Source(str(path), 1), "", f"a damaged gzip file ({error})", "a complete gzip file")


def _open_text(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _line_of_bad_bytes(path: Path) -> int:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _row(value: Any, source: Source) -> Row | Problem:
    if isinstance(value, dict):
        return Row(source, value)
    return Problem(source, "", f"{type(value).__name__} {shown(value)}", "an object with named fields")


def _not_json(source: Source, error: json.JSONDecodeError) -> Problem:
    return Problem(source, "", f"text that is not JSON: {error.msg} (column {error.colno})", "one complete JSON object")


def _json_lines(path: Path, lines: Iterator[str] | IO[str]) -> Iterator[Row | Problem]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        source = Source(str(path), number)
        try:
            yield _row(json.loads(line.rstrip("\r\n")), source)
        except json.JSONDecodeError as error:
            yield _not_json(source, error)


def _json(path: Path, stream: IO[str]) -> Iterator[Row | Problem]:
    first = ""
    for first in stream:
        if first.strip():
            break
    stream.seek(0)
    if first.lstrip().startswith("{"):
        try:
            json.loads(first)
        except json.JSONDecodeError:
            pass
        else:
            yield from _json_lines(path, stream)
            return
    yield from _json_values(path, stream.read())


def _json_values(path: Path, text: str) -> Iterator[Row | Problem]:
    """Rows of an array, or of objects written one after the other, that may each take many lines."""
    decoder = json.JSONDecoder()
    position, line, counted = 0, 1, 0

    def skip(position: int, also: str = "") -> int:
        while position < len(text) and (text[position].isspace() or text[position] in also):
            position += 1
        return position

    position = skip(0)
    in_array = position < len(text) and text[position] == "["
    if in_array:
        position = skip(position + 1)
    while position < len(text):
        if in_array and text[position] == "]":
            return
        line += text.count("\n", counted, position)
        counted = position
        source = Source(str(path), line)
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            place = Source(str(path), error.lineno)
            begun = "" if error.lineno == line else f", in the row that begins on line {line}"
            found = f"text that is not JSON: {error.msg} (column {error.colno}{begun}); the rest was not read"
            yield Problem(place, "", found, "one complete JSON object")
            return
        yield _row(value, source)
        position = skip(position)
        if not in_array:
            continue
        if position < len(text) and text[position] == ",":
            position = skip(position + 1)
        elif position < len(text) and text[position] != "]":
            line += text.count("\n", counted, position)
            found = f"{shown(text[position : position + 20])} between two rows; the rest was not read"
            yield Problem(Source(str(path), line), "", found, "a comma, or ] at the end of the array")
            return
    if in_array:
        end = Source(str(path), text.count("\n") + 1)
        yield Problem(end, "", "the end of the file inside the array", "] at the end of the array")


def _csv(path: Path, stream: IO[str]) -> Iterator[Row | Problem]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(stream)
    header = next(reader, None)
    if not header:
        return
    begin = reader.line_num + 1
    for cells in reader:
        source, begin = Source(str(path), begin), reader.line_num + 1
        if not cells:
            continue
        if len(cells) != len(header):
            yield Problem(source, "", f"{len(cells)} cells", f"{len(header)}, one for each column of the first line")
            continue
        yield Row(source, dict(zip(header, cells)))


def _parquet(path: Path) -> Iterator[Row | Problem]:
    import datasets

    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, value in enumerate(rows, 1):
            yield Row(Source(str(path), number), value)
    except Exception as error:  # pyarrow has a class of its own for each way a file can be damaged
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        yield Problem(Source(str(path), 1), "", f"a file that cannot be read: {first_line}", "a complete parquet file")
