"""Training data that is read while it is trained on (``lazy``), for files too large to hold.

The `datasets` library streams, mixes, shuffles within a buffer and deals rows out to ranks; reading, rendering,
truncation and packing are the same code as for data held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from paddlesft.data.collate import IGNORED
from paddlesft.data.conversation import Conversation, Message, Source
from paddlesft.data.problems import Problem, RowProblem, raise_if_any
from paddlesft.data.reading import iterate_conversations
from paddlesft.data.rendering import Rendered, Renderer
from paddlesft.data.report import DataReport
from paddlesft.data.sources import find_sources
from paddlesft.data.truncation import fit
from paddlesft.errors import DataError

ROWS_CHECKED_FIRST = 1000
SHUFFLE_BUFFER = 1000


class StreamingSFTDataset:
    """Rows of the training data in a stream; each pass reads the files again in another order.

    Iterating yields the same rows as ``SFTDataset``. There is no ``len``: training needs ``max_steps``.

    Args:
        data_config: a ``DataConfig``.
        renderer: template and tokenizer.
        split: "train", "eval", "test" or "quant".
        seed: of mixing and shuffling.
        shuffle: whether rows are shuffled within a buffer.

    Attributes:
        report: numbers about what has been read so far.
    """

    def __init__(
        self, data_config: Any, renderer: Renderer, split: str = "train", seed: int = 42, shuffle: bool = True
    ) -> None:
        self.data_config, self.renderer, self.split, self.seed, self.shuffle = (
            data_config, renderer, split, seed, shuffle,
        )  # fmt: skip
        self.sources = find_sources(data_config, split)
        self.epoch = 0
        self.rank, self.ranks = 0, 1
        if split == "train":
            self._format = data_config.train_dataset_type
        else:
            self._format = data_config.eval_dataset_type
        self.report = DataReport(
            split=split,
            files=[str(file) for source in self.sources for file in source.files],
            declared=self._format != "auto" or bool(data_config.column_map),
            template=renderer.template.name,
            truncation=data_config.truncation,
            notices=[*renderer.notices, "The data is streamed; the numbers cover what has been read so far."],
            fingerprint=self.fingerprint,
        )
        self._check_beginning()

    @property
    def fingerprint(self) -> str:
        """``sha256:…`` over names, sizes and first megabytes of the files and the template."""
        digest = hashlib.sha256(self.renderer.template.fingerprint.encode())
        for source in self.sources:
            for file in source.files:
                digest.update(f"{file.name} {file.stat().st_size}".encode())
                with open(file, "rb") as stream:
                    digest.update(stream.read(1 << 20))
        return f"sha256:{digest.hexdigest()}"

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def shard(self, rank: int, ranks: int) -> StreamingSFTDataset:
        """Make this process read only its share: every ``ranks``-th row beginning with number ``rank``."""
        self.rank, self.ranks = rank, ranks
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = (row for conversation in self._conversations() for row in self._sequences(conversation))
        if not self.data_config.packing:
            yield from (_unpacked(row) for row in rows)
            return
        pack: list[Rendered] = []
        room = self.data_config.max_length
        for row in rows:
            length = len(row.input_ids) - 1
            if pack and length > room:
                yield _packed(pack)
                pack, room = [], self.data_config.max_length
            pack.append(row)
            room -= length
        if pack:
            yield _packed(pack)

    def _conversations(self) -> Iterator[Conversation]:
        import datasets
        from datasets.distributed import split_dataset_by_node

        streams = [
            datasets.IterableDataset.from_generator(
                _serialised,
                gen_kwargs={
                    "paths": [str(file) for file in source.files],
                    "format": self._format,
                    "column_map": self.data_config.column_map,
                },
            )
            for source in self.sources
        ]
        shares = [source.probability for source in self.sources]
        strategy = self.data_config.mix_strategy
        if len(streams) == 1:
            stream = streams[0]
        elif strategy == "concat":
            stream = datasets.concatenate_datasets(streams)
        else:
            stream = datasets.interleave_datasets(
                streams,
                probabilities=None if any(share is None for share in shares) else shares,
                seed=self.seed,
                stopping_strategy="all_exhausted" if strategy == "interleave_over" else "first_exhausted",
            )
        if self.shuffle:
            stream = stream.shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER)
            stream.set_epoch(self.epoch)
        if self.ranks > 1:
            stream = split_dataset_by_node(stream, rank=self.rank, world_size=self.ranks)
        limit = self.data_config.max_train_samples if self.split == "train" else self.data_config.max_eval_samples
        for row in islice(stream, limit):
            yield _restored(row["row"])

    def _sequences(self, conversation: Conversation) -> list[Rendered]:
        config = self.data_config
        kept = []
        try:
            for sequence in self.renderer.render_rows(conversation):
                fitted = fit(sequence, self.renderer, config.truncation, config.src_length, config.max_length)
                self.report.count(fitted)
                if fitted.row is not None:
                    kept.append(fitted.row)
        except RowProblem as problem:
            raise_if_any([problem.at(conversation.source)], self.report.rows_read)
        self.report.rows_read += 1
        return kept

    def _check_beginning(self) -> None:
        """List the bad rows at the head of each file before training begins."""
        problems: list[Problem] = []
        formats: list[str] = []
        rows = 0
        for source in self.sources:
            for file in source.files:
                head = iterate_conversations(file, self._format, self.data_config.column_map, True, formats)
                for entry in islice(head, ROWS_CHECKED_FIRST):
                    rows += 1
                    if isinstance(entry, Problem):
                        problems.append(entry)
                        continue
                    try:
                        self.renderer.render_rows(entry)
                    except RowProblem as problem:
                        problems.append(problem.at(entry.source))
        raise_if_any(problems, rows)
        if not rows:
            raise DataError(f"No rows in {', '.join(self.report.files)}.")
        self.report.format = " + ".join(dict.fromkeys(formats))


def _serialised(paths: list[str], format: str, column_map: dict[str, str] | None) -> Iterator[dict[str, str]]:
    for path in paths:
        for entry in iterate_conversations(Path(path), format, column_map):
            if isinstance(entry, Problem):
                raise_if_any([entry], 1)
            yield {"row": json.dumps(asdict(entry), ensure_ascii=False)}


def _restored(text: str) -> Conversation:
    value = json.loads(text)
    return Conversation([Message(**m) for m in value["messages"]], value["tools"], Source(**value["source"]))


def _unpacked(row: Rendered) -> dict[str, Any]:
    labels = [token if flag else IGNORED for token, flag in zip(row.input_ids[1:], row.trained[1:])]
    return {"input_ids": row.input_ids[:-1], "labels": labels}


def _packed(rows: list[Rendered]) -> dict[str, Any]:
    packed: dict[str, Any] = {"input_ids": [], "labels": [], "position_ids": [], "segment_lengths": []}
    for row in map(_unpacked, rows):
        packed["input_ids"] += row["input_ids"]
        packed["labels"] += row["labels"]
        packed["position_ids"] += range(len(row["input_ids"]))
        packed["segment_lengths"].append(len(row["input_ids"]))
    return packed
