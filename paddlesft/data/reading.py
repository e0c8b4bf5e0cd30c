"""Files to conversations, with every row that cannot be used collected instead of the first one raised."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from paddlesft.data.containers import Row, read_rows
from paddlesft.data.conversation import Conversation, Source
from paddlesft.data.formats import columns
from paddlesft.data.formats.registry import detect, format_named
from paddlesft.data.problems import Problem, RowProblem, raise_if_any

ROWS_LOOKED_AT = 50


@dataclass
class ReadResult:
    """What reading gave.

    Attributes:
        conversations: the usable rows in order.
        format: name of the format, or names joined by " + " when files differ.
        declared: whether the format was declared (else it was recognised).
        files: the files read.
        problems: the rows that cannot be used.
        rows: number of rows seen, bad ones included.
    """

    conversations: list[Conversation] = field(default_factory=list)
    format: str = ""
    declared: bool = False
    files: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    rows: int = 0

    def usable(self) -> list[Conversation]:
        """Return the conversations, or raise ``DataError`` listing every bad row."""
        raise_if_any(self.problems, self.rows)
        return self.conversations


def read_conversations(
    paths: Sequence[str | Path],
    format: str = "auto",
    column_map: Mapping[str, str] | None = None,
    limit: int | None = None,
    reply_needed: bool = True,
) -> ReadResult:
    """Read files into conversations.

    Args:
        paths: data files; each may be of another container and, when ``format`` is "auto", of another format.
        format: "auto" looks at the first rows of each file; or the name of a format.
        column_map: part -> column for the format "columns"; declares that format when ``format`` is "auto".
        limit: stop after this many usable rows.
        reply_needed: False where rows are only to be answered, so a missing reply is fine.

    Returns:
        The conversations and the problems; call ``.usable()`` to insist on no problems.

    Raises:
        DataError: a missing or empty file, an unknown format, rows of no or of mixed formats.
    """
    result = ReadResult(declared=format != "auto" or bool(column_map))
    formats: list[str] = []
    for path in paths:
        result.files.append(str(path))
        before = result.rows
        for entry in iterate_conversations(Path(path), format, column_map, reply_needed, formats):
            if limit is not None and len(result.conversations) >= limit:
                break
            result.rows += 1
            if isinstance(entry, Problem):
                result.problems.append(entry)
            else:
                result.conversations.append(entry)
        if result.rows == before and not (limit is not None and len(result.conversations) >= limit):
            result.problems.append(Problem(Source(str(path), 1), "", "no rows", "at least one row"))
    result.format = " + ".join(dict.fromkeys(formats))
    return result


def iterate_conversations(
    path: Path,
    format: str = "auto",
    column_map: Mapping[str, str] | None = None,
    reply_needed: bool = True,
    formats: list[str] | None = None,
) -> Iterator[Conversation | Problem]:
    """Yield one file's rows as conversations or problems, reading no further than asked.

    Args:
        path: the file.
        format: as in ``read_conversations``.
        column_map: as in ``read_conversations``.
        reply_needed: as in ``read_conversations``.
        formats: the name of the format is appended here once it is known.
    """
    if column_map and format == "auto":
        format = columns.NAME
    rows = read_rows(path)
    if format == "auto":
        head = list(islice(rows, ROWS_LOOKED_AT))
        good = [row for row in head if isinstance(row, Row)]
        rows = chain(head, rows)
        if not good:
            yield from (row for row in rows if isinstance(row, Problem))
            return
        module = detect(good)
    else:
        module = format_named(format)
    if formats is not None:
        formats.append(module.NAME)
    options: dict[str, Any] = {}
    if module is columns and column_map:
        options["column_map"] = columns.normalised_map(column_map)
    for row in rows:
        yield row if isinstance(row, Problem) else _parsed(module, row, reply_needed, options)


def _parsed(module: ModuleType, row: Row, reply_needed: bool, options: dict[str, Any]) -> Conversation | Problem:
    try:
        conversation = module.parse(row.value, row.source, reply_needed, **options)
        _insist_on_unicode(conversation)
    except RowProblem as problem:
        return problem.at(row.source)
    known = columns.read_columns(row.value, **options) if module is columns else module.KEYS
    unread = tuple(name for name in row.value if name not in known and row.value[name] is not None)
    return replace(conversation, unread=unread) if unread else conversation


def _insist_on_unicode(conversation: Conversation) -> None:
    """JSON can spell halves of characters ("\\ud83d"), which no tokenizer takes and no file can hold."""
    texts = [message.content for message in conversation.messages]
    if conversation.tools or any(message.tool_calls for message in conversation.messages):
        told = [conversation.tools, [message.tool_calls for message in conversation.messages]]
        texts.append(json.dumps(told, ensure_ascii=False, default=str))
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ascii(text[error.start])[1:-1]
            raise RowProblem("", f"half a character ({half}) in a text", "complete Unicode characters") from error
