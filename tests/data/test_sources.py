"""Which files belong to which split, and what is said when they do not exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.config.data import DataConfig
from paddlesft.data.sources import find_dataset_files, find_sources, has_split
from paddlesft.errors import DataError

ROW = [{"src": "q", "tgt": "a"}]


def names(config: DataConfig, split: str) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in find_dataset_files(config, split)]


def test_a_directory_with_one_file_for_each_split(write: Callable[..., Path]) -> None:
    for name in ("d/train.json", "d/dev.json", "d/test.jsonl", "d/quant.json"):
        write(name, ROW)
    config = DataConfig(dataset_name_or_path=str(write("d/readme.md", "x").parent))
    assert [names(config, split) for split in ("train", "eval", "test", "quant")] == [
        ["d/train.json"], ["d/dev.json"], ["d/test.jsonl"], ["d/quant.json"]]  # fmt: skip


def test_a_directory_with_a_directory_for_each_split(write: Callable[..., Path]) -> None:
    for name in ("d/train/b.json", "d/train/a.jsonl.gz", "d/train/notes.md", "d/validation/x.csv"):
        path = write(name, ROW)
    config = DataConfig(dataset_name_or_path=str(path.parent.parent))
    assert names(config, "train") == ["train/a.jsonl.gz", "train/b.json"]
    assert names(config, "eval") == ["validation/x.csv"]
    assert not has_split(config, "quant")


def test_one_file_is_training_data(write: Callable[..., Path]) -> None:
    config = DataConfig(dataset_name_or_path=str(write("rows.jsonl", ROW)))
    assert len(find_dataset_files(config, "train")) == 1
    assert not has_split(config, "eval")


def test_several_paths_with_shares(write: Callable[..., Path]) -> None:
    paths = [str(write("a.jsonl", ROW)), str(write("more/b.jsonl", ROW).parent)]
    for given in (paths, [",".join(paths)]):
        sources = find_sources(DataConfig(train_dataset_path=given, train_dataset_prob=[0.8, 0.2]), "train")
        assert [source.probability for source in sources] == [0.8, 0.2]
        assert [file.name for source in sources for file in source.files] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(
        DataError, match=r"found 1 shares \[1.0\] for 2 entries of train_dataset_path; allowed: as many"
    ):
        find_sources(DataConfig(train_dataset_path=paths, train_dataset_prob=[1.0]), "train")
    with pytest.raises(DataError, match="adding up to 1"):
        find_sources(DataConfig(train_dataset_path=paths, train_dataset_prob=[0.8, 0.8]), "train")


def test_missing_paths_say_what_is_there(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    here = write("d/train.jsonl", ROW).parent
    with pytest.raises(DataError, match=r"train_dataset_path: .*/d/trian.jsonl does not exist; .*/d has train.jsonl\."):
        find_dataset_files(DataConfig(train_dataset_path=[str(here / "trian.jsonl")]), "train")
    with pytest.raises(DataError, match=r"the nearest directory that does is .*, with train.jsonl"):
        find_dataset_files(DataConfig(train_dataset_path=[str(here / "x" / "y.jsonl")]), "train")
    with pytest.raises(
        DataError, match=r"No eval data in .*: looked for dev.json, dev/\*.json or .*; found train.jsonl"
    ):
        find_dataset_files(DataConfig(dataset_name_or_path=str(here)), "eval")
    with pytest.raises(
        DataError, match=r"No test data is configured. Set dataset_name_or_path .* or test_dataset_path"
    ):
        find_dataset_files(DataConfig(), "test")
    with pytest.raises(DataError, match=r"found the file .*a.txt; allowed endings: .json"):
        find_dataset_files(DataConfig(train_dataset_path=[str(write("a.txt", "x"))]), "train")
    with pytest.raises(DataError, match=r"has no data files; found readme.md; allowed endings"):
        find_dataset_files(DataConfig(train_dataset_path=[str(write("e/readme.md", "x").parent)]), "train")
    write("d/train.csv", "a,b")
    with pytest.raises(DataError, match=r"several files for the train split: train.jsonl, train.csv"):
        find_dataset_files(DataConfig(dataset_name_or_path=str(here)), "train")


def test_hub_names_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("tatsu-lab/alpaca", "advertisegen"):
        with pytest.raises(DataError) as raised:
            find_dataset_files(DataConfig(dataset_name_or_path=name), "train")
        text = str(raised.value)
        assert f"found the name {name!r}, which is no file or directory here" in text
        assert f"huggingface-cli download --repo-type dataset {name} --local-dir data" in text
        assert "there is train.jsonl." in text
