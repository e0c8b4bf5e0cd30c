"""Lazily read training data: the same rows, from disk, prepared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.config.data import DataConfig
from paddlesft.data.dataset import build_dataset
from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import load_template
from paddlesft.errors import DataError

ROWS = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."} for i in range(30)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PADDLESFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "datasets"


@pytest.mark.parametrize("packing", [False, True])
def test_the_same_rows_as_in_memory(write: Callable[..., Path], renderer: Renderer, packing: bool) -> None:
    options: dict[str, Any] = {
        "train_dataset_path": [str(write("a.jsonl", ROWS))],
        "packing": packing,
        "max_length": 150,
    }
    held, held_report = build_dataset(DataConfig(**options), renderer, "train")
    lazy, report = build_dataset(DataConfig(**options, lazy=True), renderer, "train")
    assert [lazy[i] for i in range(len(lazy))] == [held[i] for i in range(len(held))]
    assert lazy.fingerprint == held.fingerprint
    assert isinstance(lazy._ids, np.memmap)
    left_out = {"notices"}
    assert {k: v for k, v in vars(report).items() if k not in left_out} == {
        k: v for k, v in vars(held_report).items() if k not in left_out
    }


def test_prepared_once_and_again_when_anything_changes(
    write: Callable[..., Path], renderer: Renderer, tokenizers: dict[str, Any], own_cache: Path
) -> None:
    path = write("a.jsonl", ROWS)

    def stored(**options: Any) -> int:
        using = options.pop("renderer", renderer)
        build_dataset(DataConfig(train_dataset_path=[str(path)], lazy=True, **options), using, "train")
        return sum(entry.is_dir() for entry in own_cache.iterdir())

    assert [stored(), stored(), stored(packing=True)] == [1, 1, 1]
    assert stored(max_length=60) == 2
    assert stored(max_train_samples=4) == 3
    chatml = Renderer(tokenizers["smollm2"], load_template(tokenizers["smollm2"], "chatml"))
    assert stored(renderer=chatml) == 4
    gpt2 = Renderer(tokenizers["gpt2"], load_template(tokenizers["gpt2"], "chatml"))
    assert stored(renderer=gpt2) == 5
    write("a.jsonl", ROWS[:-1])
    assert stored() == 6


def test_bad_rows_are_all_listed_and_nothing_is_stored(
    write: Callable[..., Path], renderer: Renderer, own_cache: Path
) -> None:
    bad = {"question": "q", "answer": ""}
    path = write("a.jsonl", [bad, *ROWS, bad, {"question": [], "answer": "a"}])
    with pytest.raises(
        DataError, match=r"3 rows of 33 cannot be used:\n.*a.jsonl:1 .*\n.*a.jsonl:32 .*\n.*a.jsonl:33 "
    ):
        build_dataset(DataConfig(train_dataset_path=[str(path)], lazy=True), renderer, "train")
    assert not [entry for entry in own_cache.iterdir() if entry.is_dir()]
