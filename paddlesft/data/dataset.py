"""The data set that training reads: rendered, truncated, optionally packed rows, and the report about them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.data.collate import IGNORED
from paddlesft.data.conversation import Conversation
from paddlesft.data.packing import pack_best_fit, pack_in_order
from paddlesft.data.problems import Problem, RowProblem, raise_if_any, unread_fields
from paddlesft.data.reading import ReadResult, iterate_conversations
from paddlesft.data.rendering import Rendered, Renderer
from paddlesft.data.report import DataReport
from paddlesft.data.sources import find_sources, has_split
from paddlesft.data.splits import read_split
from paddlesft.data.stored import map_rows, rows_key, write_rows
from paddlesft.data.streaming import stream_conversations
from paddlesft.data.truncation import fit
from paddlesft.errors import DataError
from paddlesft.models.cache import cached_directory

logger = logging.getLogger("paddlesft")


class SFTDataset:
    """Rows of token ids and shifted labels, held in flat arrays.

    ``dataset[i]`` is ``{"input_ids", "labels"}`` (lists of n - 1 positions for a conversation of n tokens: position k
    predicts token k + 1), for packed data with ``position_ids`` and ``segment_lengths`` too.

    Args:
        ids: token ids of each sequence.
        trained: as many flags for each.
        template_fingerprint: enters the data's fingerprint.
        packs: indices of the sequences that make each row; None for one row for each sequence.
    """

    def __init__(
        self,
        ids: Iterable[Sequence[int] | np.ndarray],
        trained: Iterable[Sequence[bool] | np.ndarray],
        template_fingerprint: str = "",
        packs: list[list[int]] | None = None,
    ) -> None:
        parts = [np.asarray(row, dtype=np.int32) for row in ids]
        flags = [np.asarray(row, dtype=bool) for row in trained]
        self._offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        self._ids = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        self._trained = np.concatenate(flags) if flags else np.zeros(0, bool)
        self._template_fingerprint = template_fingerprint
        self._packs = packs
        self._fingerprint: str | None = None

    @classmethod
    def of_arrays(
        cls, ids: np.ndarray, trained: np.ndarray, offsets: np.ndarray, template_fingerprint: str
    ) -> SFTDataset:
        """Make a data set of flat arrays, which may be mapped from disk.

        Args:
            ids: all token ids, int32.
            trained: as many flags.
            offsets: where each sequence begins, and the end.
            template_fingerprint: enters the data's fingerprint.
        """
        made = cls([], [], template_fingerprint)
        made._ids, made._trained, made._offsets = ids, trained, offsets
        return made

    def packed(self, packs: list[list[int]]) -> SFTDataset:
        """Return the same sequences with several of them in each row.

        Args:
            packs: for each row the sequences it holds.
        """
        made = SFTDataset.of_arrays(self._ids, self._trained, self._offsets, self._template_fingerprint)
        made._packs = packs
        return made

    def __len__(self) -> int:
        return len(self._offsets) - 1 if self._packs is None else len(self._packs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if self._packs is None:
            ids, labels = self._sequence(index)
            return {"input_ids": ids, "labels": labels}
        row: dict[str, Any] = {"input_ids": [], "labels": [], "position_ids": [], "segment_lengths": []}
        for sequence in self._packs[index]:
            ids, labels = self._sequence(sequence)
            row["input_ids"] += ids
            row["labels"] += labels
            row["position_ids"] += range(len(ids))
            row["segment_lengths"].append(len(ids))
        return row

    def _sequence(self, index: int) -> tuple[list[int], list[int]]:
        begin, end = self._offsets[index], self._offsets[index + 1]
        ids = self._ids[begin:end]
        labels = np.where(self._trained[begin + 1 : end], ids[1:], IGNORED)
        return ids[:-1].tolist(), labels.tolist()

    def _members(self, index: int) -> Sequence[int]:
        return (index % len(self),) if self._packs is None else self._packs[index]

    def length(self, index: int) -> int:
        """Return how many positions a row has."""
        return int(sum(self._offsets[i + 1] - self._offsets[i] - 1 for i in self._members(index)))

    def num_trained_tokens(self, index: int) -> int:
        """Return how many positions of a row have a label."""
        return int(sum(self._trained[self._offsets[i] + 1 : self._offsets[i + 1]].sum() for i in self._members(index)))

    @property
    def lengths(self) -> list[int]:
        """Positions of every row."""
        return [self.length(i) for i in range(len(self))]

    @property
    def fingerprint(self) -> str:
        """``sha256:…`` over ids, labels, packing and template: equal exactly when training sees the same data."""
        if self._fingerprint is None:
            digest = hashlib.sha256(self._template_fingerprint.encode())
            for array in (self._offsets, self._ids, self._trained):
                digest.update(memoryview(np.ascontiguousarray(array)).cast("B") if len(array) else b"")
            if self._packs is not None:
                digest.update(repr(self._packs).encode())
            self._fingerprint = f"sha256:{digest.hexdigest()}"
        return self._fingerprint


def build_dataset(data_config: Any, renderer: Renderer, split: str, seed: int = 42) -> tuple[SFTDataset, DataReport]:
    """Read, render, truncate and pack one split.

    With ``lazy`` the training rows are streamed into files of the user's cache and mapped into memory from there: no
    more than one row is held while they are prepared, and a later run on the same data starts at once.

    Args:
        data_config: a ``DataConfig``.
        renderer: template and tokenizer.
        split: "train", "eval", "test" or "quant" ("quant" falls back to the training data, as PaddleNLP does).
        seed: of mixing and of setting evaluation rows aside.

    Returns:
        The data set and the report about it.

    Raises:
        DataError: missing files, or bad rows, all of them listed.
    """
    aside = data_config.eval_split_ratio and not has_split(data_config, "eval")
    if data_config.lazy and split == "train" and not aside:
        dataset, report = stored_dataset(data_config, renderer, seed)
    else:
        dataset, report = render_conversations(read_split(data_config, split, seed), renderer, data_config, split)
    packing = data_config.packing
    if split != "train" and data_config.eval_packing is not None:
        packing = data_config.eval_packing
    if split != "train" and data_config.eval_with_do_generation:
        packing = False  # generation needs each prompt by itself
    if packing:
        pack = pack_best_fit if data_config.greedy_packing else pack_in_order
        dataset = dataset.packed(pack(dataset.lengths, data_config.max_length))
        report.packs, report.capacity = len(dataset), data_config.max_length
    report.lengths = dataset.lengths
    report.fingerprint = dataset.fingerprint
    return dataset, report


def stored_dataset(data_config: Any, renderer: Renderer, seed: int) -> tuple[SFTDataset, DataReport]:
    """Stream the training rows into the user's cache, unless they are there, and map them into memory.

    Args:
        data_config: as in ``build_dataset``.
        renderer: as in ``build_dataset``.
        seed: as in ``build_dataset``.

    Raises:
        DataError: bad rows, all of them listed; nothing is stored then.
    """
    sources = find_sources(data_config, "train")
    declared = data_config.train_dataset_type
    key = rows_key(data_config, renderer, sources, declared, seed)

    def make(directory: Path) -> None:
        report = _new_report("train", renderer, data_config)
        report.files = [str(file) for source in sources for file in source.files]
        report.declared = declared != "auto" or bool(data_config.column_map)
        formats: list[str] = []
        for file in report.files:  # the first row of each tells its format
            next(iterate_conversations(Path(file), declared, data_config.column_map, True, formats), None)
        report.format = " + ".join(dict.fromkeys(formats))
        stream = stream_conversations(
            sources, declared, data_config.column_map, data_config.mix_strategy, seed, data_config.max_train_samples
        )
        write_rows(directory, _rendered(stream, renderer, data_config, report))
        told = {name: value for name, value in vars(report).items() if name != "notices"}
        (directory / "report.json").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")

    # a date in the template changes from day to day without changing the template
    dated = "strftime_now" in renderer.template.source
    directory = cached_directory(f"datasets/{key}-{date.today()}" if dated else f"datasets/{key}", make)
    ids, trained, offsets = map_rows(directory)
    report = DataReport(**json.loads((directory / "report.json").read_text(encoding="utf-8")))
    report.notices = [*renderer.notices, f"The rendered rows are kept in {directory}."]
    report.median_length = int(np.median(np.diff(offsets)))
    return SFTDataset.of_arrays(ids, trained, offsets, renderer.template.fingerprint), report


def render_conversations(
    read: ReadResult, renderer: Renderer, data_config: Any, split: str
) -> tuple[SFTDataset, DataReport]:
    """Render what was read and apply the truncation policy; the rows are not packed yet.

    Args:
        read: from ``read_split``.
        renderer: template and tokenizer.
        data_config: for ``truncation``, ``src_length`` and ``max_length``.
        split: named in the report.

    Raises:
        DataError: bad rows, those found while reading included, all of them listed.
    """
    report = _new_report(split, renderer, data_config)
    report.files, report.format, report.declared = read.files, read.format, read.declared
    ids, trained = [], []
    for row in _rendered([*read.problems, *read.conversations], renderer, data_config, report):
        ids.append(np.asarray(row.input_ids, np.int32))  # a tenth of what Python's integers take
        trained.append(np.asarray(row.trained, bool))
    report.median_length = int(np.median([len(row) for row in ids]))
    return SFTDataset(ids, trained, renderer.template.fingerprint), report


def _new_report(split: str, renderer: Renderer, data_config: Any) -> DataReport:
    return DataReport(
        split=split,
        template=renderer.template.name,
        truncation=data_config.truncation,
        notices=list(renderer.notices),
    )


def _rendered(
    entries: Iterable[Conversation | Problem], renderer: Renderer, data_config: Any, report: DataReport
) -> Iterator[Rendered]:
    """Yield the sequences of all conversations, counting them in the report; raise at the end if any row is bad."""
    problems: list[Problem] = []
    unreadable = 0
    marked: list[str] = []
    tools_seen = 0
    unread: Counter[str] = Counter()
    for entry in entries:
        if isinstance(entry, Problem):
            problems.append(entry)
            unreadable += 1
            continue
        report.rows_read += 1
        tools_seen += bool(entry.tools)
        unread.update(entry.unread)
        special = _special_token_in(entry, renderer)
        if special:
            marked.append(f"{entry.source}: {special!r}")
        try:
            yield from _fitted(entry, renderer, data_config, report)
        except RowProblem as problem:
            problems.append(problem.at(entry.source))
    raise_if_any(problems, report.rows_read + unreadable)
    if not report.rows:
        raise DataError(
            f"No row of the {report.split} data is left: {report.dropped_rows} of {report.rows_read} were dropped "
            f"because they are longer than max_length={data_config.max_length}. Raise max_length or choose another "
            "truncation."
        )
    report.notices += unread_fields(unread)
    if marked:
        if renderer.reads_special_tokens:
            read_as = "it becomes that token"
        else:
            read_as = "it stays ordinary text (remove it where it ends a reply: every reply gets its own stop token)"
        whose = "1 row has" if len(marked) == 1 else f"{len(marked)} rows have"
        report.notices.append(f"{whose} the text of a special token in a message ({marked[0]}); {read_as}.")
    if tools_seen and not renderer.template.mentions("tools"):
        whose = "1 row lists" if tools_seen == 1 else f"{tools_seen} rows list"
        report.notices.append(f"{whose} tools, which template {renderer.template.name!r} does not show to the model.")


def _special_token_in(conversation: Conversation, renderer: Renderer) -> str | None:
    """The first special token's text inside a message; only with the template plain does it become that token."""
    found = (renderer.encoder.special_text.search(message.content) for message in conversation.messages)
    return next((match.group() for match in found if match), None)


def _fitted(conversation: Conversation, renderer: Renderer, data_config: Any, report: DataReport) -> list[Rendered]:
    sequences = renderer.render_rows(conversation)
    report.split_conversations += len(sequences) > 1
    kept = []
    for sequence in sequences:
        fitted = fit(sequence, renderer, data_config.truncation, data_config.src_length, data_config.max_length)
        report.count(fitted)
        if fitted.row is not None:
            kept.append(fitted.row)
    return kept
