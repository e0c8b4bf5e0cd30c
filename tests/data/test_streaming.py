"""Streamed data gives the rows that data in memory gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paddlesft.config.data import DataConfig
from paddlesft.data.dataset import build_dataset
from paddlesft.data.rendering import Renderer
from paddlesft.data.streaming import StreamingSFTDataset
from paddlesft.errors import DataError

ROWS = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."} for i in range(30)]


@pytest.mark.parametrize("packing", [False, True])
def test_the_same_rows(write: Callable[..., Path], renderer: Renderer, packing: bool) -> None:
    options: dict[str, Any] = {
        "train_dataset_path": [str(write("a.jsonl", ROWS))],
        "packing": packing,
        "max_length": 150,
    }
    held, held_report = build_dataset(DataConfig(**options), renderer, "train")
    stream, report = build_dataset(DataConfig(**options, lazy=True), renderer, "train")
    assert isinstance(stream, StreamingSFTDataset)
    stream.shuffle = False
    assert list(stream) == [held[i] for i in range(len(held))]
    assert (report.rows, report.tokens, report.trained_tokens) == (
        held_report.rows, held_report.tokens, held_report.trained_tokens)  # fmt: skip
    assert report.format == "columns"


def test_order_epochs_and_shares_of_ranks(write: Callable[..., Path], renderer: Renderer) -> None:
    config = DataConfig(train_dataset_path=[str(write("a.jsonl", ROWS))], lazy=True, max_train_samples=20)
    stream = StreamingSFTDataset(config, renderer, seed=3)
    first = [row["input_ids"] for row in stream]
    assert len(first) == 20
    assert first == [row["input_ids"] for row in stream]
    stream.set_epoch(1)
    assert first != [row["input_ids"] for row in stream]
    stream = StreamingSFTDataset(DataConfig(train_dataset_path=config.train_dataset_path), renderer, seed=3)
    whole = [row["input_ids"] for row in stream]
    parts = [[row["input_ids"] for row in stream.shard(rank, 3)] for rank in range(3)]
    assert sorted(row for part in parts for row in part) == sorted(whole)
    assert [len(part) for part in parts] == [10, 10, 10]


def test_sources_are_mixed_in_the_stream(write: Callable[..., Path], renderer: Renderer) -> None:
    paths = [str(write("a.jsonl", ROWS)), str(write("b.jsonl", [{"src": "q", "tgt": "a"}] * 30))]
    counts = {}
    for strategy in ("concat", "interleave_under"):
        config = DataConfig(train_dataset_path=paths, mix_strategy=strategy, train_dataset_prob=[0.9, 0.1])
        stream = StreamingSFTDataset(config, renderer, seed=1, shuffle=False)
        counts[strategy] = len(list(stream))
    assert counts["concat"] == 60 and 30 <= counts["interleave_under"] < 45


def test_bad_rows_at_the_beginning_are_listed_before_training(write: Callable[..., Path], renderer: Renderer) -> None:
    path = write("a.jsonl", [*ROWS, {"question": "q", "answer": ""}, {"question": "", "answer": "a"}])
    with pytest.raises(DataError, match="2 rows of 32 cannot be used"):
        StreamingSFTDataset(DataConfig(train_dataset_path=[str(path)]), renderer)


def test_a_bad_row_further_on_stops_with_its_line(
    write: Callable[..., Path], renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paddlesft.data.streaming.ROWS_CHECKED_FIRST", 5)
    path = write("a.jsonl", [*ROWS, {"question": "q", "answer": ""}])
    stream = StreamingSFTDataset(DataConfig(train_dataset_path=[str(path)]), renderer, shuffle=False)
    with pytest.raises(DataError, match=r"a.jsonl:31  field 'answer': found an empty string"):
        list(stream)
