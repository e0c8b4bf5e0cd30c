"""The data set that training reads: rendered, truncated, optionally packed rows, and the report about them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paddlesft.data.collate import IGNORED
from paddlesft.data.conversation import Conversation
from paddlesft.data.mixing import mixed_order
from paddlesft.data.packing import pack_best_fit, pack_in_order
from paddlesft.data.problems import Problem, RowProblem, raise_if_any
from paddlesft.data.reading import ReadResult, read_conversations
from paddlesft.data.rendering import Rendered, Renderer
from paddlesft.data.report import DataReport
from paddlesft.data.sources import find_sources, has_split
from paddlesft.data.streaming import StreamingSFTDataset
from paddlesft.data.truncation import fit
from paddlesft.errors import DataError

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
        ids: Iterable[Sequence[int]],
        trained: Iterable[Sequence[bool]],
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
                digest.update(np.ascontiguousarray(array).tobytes())
            if self._packs is not None:
                digest.update(repr(self._packs).encode())
            self._fingerprint = f"sha256:{digest.hexdigest()}"
        return self._fingerprint


def build_dataset(
    data_config: Any, renderer: Renderer, split: str, seed: int = 42
) -> tuple[SFTDataset | StreamingSFTDataset, DataReport]:
    """Read, render, truncate and pack one split.

    Args:
        data_config: a ``DataConfig``.
        renderer: template and tokenizer.
        split: "train", "eval", "test" or "quant" ("quant" falls back to the training data, as PaddleNLP does).
        seed: of mixing and of setting evaluation rows aside.

    Returns:
        The data set and the report about it; with ``lazy`` a ``StreamingSFTDataset`` for the training split.

    Raises:
        DataError: missing files, or bad rows, all of them listed.
    """
    if data_config.lazy and split == "train":
        stream = StreamingSFTDataset(data_config, renderer, split, seed)
        return stream, stream.report
    read = read_split(data_config, split, seed)
    rows, report = render_conversations(read, renderer, data_config, split)
    packs = None
    packing = data_config.packing
    if split != "train" and data_config.eval_packing is not None:
        packing = data_config.eval_packing
    if split != "train" and data_config.eval_with_do_generation:
        packing = False  # generation needs each prompt by itself
    lengths = [len(row.input_ids) - 1 for row in rows]
    if packing and rows:
        packs = (pack_best_fit if data_config.greedy_packing else pack_in_order)(lengths, data_config.max_length)
        report.packs, report.capacity = len(packs), data_config.max_length
    dataset = SFTDataset(
        [row.input_ids for row in rows], [row.trained for row in rows], renderer.template.fingerprint, packs
    )
    report.lengths = dataset.lengths
    report.fingerprint = dataset.fingerprint
    return dataset, report


def read_split(data_config: Any, split: str, seed: int = 42) -> ReadResult:
    """Read the conversations of a split, mixed and limited as configured; problems are collected, not raised.

    Args:
        data_config: a ``DataConfig``.
        split: as in ``build_dataset``.
        seed: as in ``build_dataset``.
    """
    if split == "quant" and not has_split(data_config, "quant"):
        split = "train"
    limit = {"train": data_config.max_train_samples, "eval": data_config.max_eval_samples}.get(split)
    ratio = data_config.eval_split_ratio
    if split == "eval" and ratio and not has_split(data_config, "eval"):
        whole = _read_mixed(data_config, "train", None, seed)
        return _limited(_set_aside(whole, ratio, seed, evaluation=True), limit)
    if split == "train" and ratio and not has_split(data_config, "eval"):
        whole = _read_mixed(data_config, "train", None, seed)
        return _limited(_set_aside(whole, ratio, seed, evaluation=False), limit)
    return _read_mixed(data_config, split, limit, seed)


def _read_mixed(data_config: Any, split: str, limit: int | None, seed: int) -> ReadResult:
    sources = find_sources(data_config, split)
    declared = data_config.train_dataset_type if split in ("train", "quant") else data_config.eval_dataset_type
    alone = len(sources) == 1 or data_config.mix_strategy == "concat"
    reply_needed = True
    results = [
        read_conversations(source.files, declared, data_config.column_map, limit if alone else None, reply_needed)
        for source in sources
    ]
    if len(results) == 1:
        return results[0]
    strategy = data_config.mix_strategy if split == "train" else "concat"
    shares = [source.probability for source in sources]
    order = mixed_order(
        [len(result.conversations) for result in results],
        strategy,
        None if any(share is None for share in shares) else [float(share or 0) for share in shares],
        seed,
    ) if all(result.conversations for result in results) else []  # fmt: skip
    mixed = ReadResult(
        [results[source].conversations[row] for source, row in order],
        " + ".join(dict.fromkeys(result.format for result in results)),
        results[0].declared,
        [file for result in results for file in result.files],
        [problem for result in results for problem in result.problems],
        sum(result.rows for result in results),
    )
    return _limited(mixed, limit)


def _limited(result: ReadResult, limit: int | None) -> ReadResult:
    return result if limit is None else replace(result, conversations=result.conversations[:limit])


def _set_aside(result: ReadResult, ratio: float, seed: int, evaluation: bool) -> ReadResult:
    count = len(result.conversations)
    aside = max(1, round(count * ratio)) if count > 1 else 0
    chosen = set(np.random.default_rng(seed).permutation(count)[:aside].tolist())
    kept = [c for i, c in enumerate(result.conversations) if (i in chosen) == evaluation]
    return replace(result, conversations=kept)


def render_conversations(
    read: ReadResult, renderer: Renderer, data_config: Any, split: str
) -> tuple[list[Rendered], DataReport]:
    """Render what was read and apply the truncation policy.

    Args:
        read: from ``read_split``.
        renderer: template and tokenizer.
        data_config: for ``truncation``, ``src_length`` and ``max_length``.
        split: named in the report.

    Raises:
        DataError: bad rows, those found while reading included, all of them listed.
    """
    report = DataReport(
        split=split,
        files=read.files,
        format=read.format,
        declared=read.declared,
        template=renderer.template.name,
        rows_read=len(read.conversations),
        truncation=data_config.truncation,
        notices=list(renderer.notices),
    )
    problems: list[Problem] = list(read.problems)
    rows: list[Rendered] = []
    marked = [c for c in read.conversations if _special_token_in(c, renderer)]
    tools_seen = sum(1 for conversation in read.conversations if conversation.tools)
    for conversation in read.conversations:
        try:
            rows += _rendered_and_fitted(conversation, renderer, data_config, report)
        except RowProblem as problem:
            problems.append(problem.at(conversation.source))
    raise_if_any(problems, read.rows)
    if not rows:
        raise DataError(
            f"No row of the {split} data is left: {report.dropped_rows} of {report.rows_read} were dropped because "
            f"they are longer than max_length={data_config.max_length}. Raise max_length or choose another truncation."
        )
    if marked:
        report.notices.append(
            f"{len(marked)} rows have the text of a special token in a message ({marked[0].source}: "
            f"{_special_token_in(marked[0], renderer)!r}); it is read as that token."
        )
    if tools_seen and not renderer.template.mentions("tools"):
        report.notices.append(
            f"{tools_seen} rows list tools, which template {renderer.template.name!r} does not show to the model."
        )
    report.median_length = int(np.median([len(row.input_ids) for row in rows]))
    return rows, report


def _special_token_in(conversation: Conversation, renderer: Renderer) -> str | None:
    """The first special token's text inside a message; in a reply it would be a second stop token, for instance."""
    found = (renderer.encoder.special_text.search(message.content) for message in conversation.messages)
    return next((match.group() for match in found if match), None)


def _rendered_and_fitted(
    conversation: Conversation, renderer: Renderer, data_config: Any, report: DataReport
) -> list[Rendered]:
    sequences = renderer.render_rows(conversation)
    report.split_conversations += len(sequences) > 1
    kept = []
    for sequence in sequences:
        fitted = fit(sequence, renderer, data_config.truncation, data_config.src_length, data_config.max_length)
        report.count(fitted)
        if fitted.row is not None:
            kept.append(fitted.row)
    return kept
