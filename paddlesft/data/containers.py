"""Files to rows: json, jsonl, csv, parquet, and .gz of the text ones, each row with the line it begins on."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from paddlesft.data.conversation import Source
from paddlesft.data.problems import Problem, counted, described, shown
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
        bad = error.object[error.start : error.start + 4].hex(" ")
        allowed = "a text file in UTF-8; `iconv -f GB18030 -t UTF-8 OLD > NEW` converts one, here from GB18030"
        yield Problem(Source(str(path), line), "", f"bytes that are not UTF-8 ({bad})", allowed)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
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
    return Problem(source, "", described(value), "an object with named fields")


class _Decoder(json.JSONDecoder):
    """Decodes JSON and remembers names that an object has twice, of which one would be lost."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self.repeated: list[str] = []

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            self.repeated += [name for name in value if names.count(name) > 1]
        return value

    def row(self, value: Any, source: Source) -> Row | Problem:
        """Return the value decoded last as a row."""
        repeated, self.repeated = self.repeated, []
        if repeated:
            return Problem(source, repeated[0], "this name twice in one object", "each name once")
        return _row(value, source)


def _not_json(source: Source, error: Exception, also: str = "") -> Problem:
    if isinstance(error, json.JSONDecodeError):
        found = f"text that is not JSON: {error.msg} (column {error.colno}{also})"
    elif isinstance(error, RecursionError):
        found = "values nested too deeply"
    else:
        found = f"a value that cannot be read: {str(error).partition(';')[0]}"  # integers of thousands of digits
    return Problem(source, "", found, "one complete JSON object")


def _json_lines(path: Path, lines: Iterator[str] | IO[str]) -> Iterator[Row | Problem]:
    decoder = _Decoder()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        source = Source(str(path), number)
        try:
            yield decoder.row(decoder.decode(line.rstrip("\r\n")), source)
        except (ValueError, RecursionError) as error:
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
        except (ValueError, RecursionError):
            pass
        else:
            yield from _json_lines(path, stream)
            return
    yield from _json_values(path, stream.read())


def _json_values(path: Path, text: str) -> Iterator[Row | Problem]:
    """Rows of an array, or of objects written one after the other, that may each take many lines."""
    decoder = _Decoder()
    position, line, seen, rows, last_line = 0, 1, 0, 0, 0

    def skip(position: int, also: str = "") -> int:
        while position < len(text) and (text[position].isspace() or text[position] in also):
            position += 1
        return position

    position = skip(0)
    in_array = position < len(text) and text[position] == "["
    if in_array:
        last_line = text.count("\n", 0, position) + 1
        position = skip(position + 1)
    while position < len(text):
        line += text.count("\n", seen, position)
        seen = position
        if in_array and text[position] == "]":
            position = skip(position + 1)
            if position < len(text):
                source = Source(str(path), line + text.count("\n", seen, position))
                found = f"{shown(text[position : position + 20])} behind the array"
                yield Problem(source, "", found, "one array, or one object in each line")
            return
        rows += 1
        source = Source(str(path), line, rows if line == last_line else 0)
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            begun = "" if error.lineno == line else f", in the row that begins on line {line}"
            problem = _not_json(Source(str(path), error.lineno), error, begun)
            yield replace(problem, found=f"{problem.found}; the rest was not read")
            return
        except (ValueError, RecursionError) as error:
            problem = _not_json(source, error)
            yield replace(problem, found=f"{problem.found}; the rest was not read")
            return
        yield decoder.row(value, source)
        last_line = line + text.count("\n", seen, position)
        position = skip(position)
        if not in_array:
            continue
        if position < len(text) and text[position] == ",":
            position = skip(position + 1)
        elif position < len(text) and text[position] != "]":
            line += text.count("\n", seen, position)
            found = f"{shown(text[position : position + 20])} between two rows; the rest was not read"
            yield Problem(Source(str(path), line), "", found, "a comma, or ] at the end of the array")
            return
    if in_array:
        end = Source(str(path), text.count("\n") + 1)
        yield Problem(end, "", "the end of the file inside the array", "] at the end of the array")


def _csv(path: Path, stream: IO[str]) -> Iterator[Row | Problem]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(stream, strict=True)
    header, begin = None, 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Problem(Source(str(path), begin), "", *_csv_fault(str(error)))
            begin = reader.line_num + 1
            continue
        if cells is None:
            return
        source, begin = Source(str(path), begin), reader.line_num + 1
        if header is None:
            header = cells
            fault = _header_fault(header)
            if fault:
                yield Problem(source, "", *fault)
                return
        elif len(cells) == len(header):
            yield Row(source, dict(zip(header, cells)))
        elif cells:
            found = counted(len(cells), "cell")
            yield Problem(source, "", found, f"{len(header)}, one for each column of the first line")


def _csv_fault(error: str) -> tuple[str, str]:
    if "end of data" in error:
        return "a quoted cell that never ends", 'a " at the end of each cell that begins with one'
    return f"a cell that is not quoted right ({error})", 'cells such as "one, ""two""", quoted from end to end'


def _header_fault(header: list[str]) -> tuple[str, str] | None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        return f"two columns with the name {shown(twice)}", "each name once"
    other = next((mark for mark in ";\t|" if mark in header[0]), None) if len(header) == 1 else None
    if other is not None:
        return f"one column {shown(header[0])}, so cells are separated by {shown(other)}", "cells separated by commas"
    return None


def _parquet(path: Path) -> Iterator[Row | Problem]:
    # not through datasets: threads of its streams abort one process in three at its end (datasets 3.6, pyarrow 19)
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000, use_threads=False):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(Source(str(path), number), value)
    except (pyarrow.ArrowException, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        yield Problem(Source(str(path), 1), "", f"a file that cannot be read: {first_line}", "a complete parquet file")
