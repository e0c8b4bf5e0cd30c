"""Which files a split is read from, and in which shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlesft.data.containers import SUFFIXES, container_of
from paddlesft.errors import DataError

# split -> file and directory names, in the order of preference
SPLIT_NAMES = {
    "train": ("train",),
    "eval": ("dev", "eval", "validation", "valid"),
    "test": ("test",),
    "quant": ("quant",),
}
PATH_KEYS = {"train": "train_dataset_path", "eval": "eval_dataset_path", "test": "test_dataset_path"}


@dataclass(frozen=True)
class DataSource:
    """The files of one entry of a path list.

    Attributes:
        files: in the order they are read.
        probability: the entry's share in a mix; None when no shares are given.
    """

    files: tuple[Path, ...]
    probability: float | None = None


def find_dataset_files(data_config: Any, split: str) -> list[Path]:
    """Return the files of a split.

    Args:
        data_config: a ``DataConfig``.
        split: "train", "eval", "test" or "quant".

    Raises:
        DataError: nothing is configured for the split, or a path does not exist; says what is there.
    """
    return [file for source in find_sources(data_config, split) for file in source.files]


def has_split(data_config: Any, split: str) -> bool:
    """Whether there are files for a split; a path that does not exist still raises."""
    return bool(_sources(data_config, split))


def find_sources(data_config: Any, split: str) -> list[DataSource]:
    """Return the split's sources with their shares; see ``find_dataset_files``."""
    found = _sources(data_config, split)
    if found:
        return found
    place = data_config.dataset_name_or_path
    key = PATH_KEYS.get(split)
    if place is None:
        also = f" or {key}" if key else ""
        raise DataError(f"No {split} data is configured. Set dataset_name_or_path (a directory or a file){also}.")
    names = " or ".join(f"{name}.json, {name}/*.json" for name in SPLIT_NAMES[split])
    raise DataError(
        f"No {split} data in {place}: looked for {names} (also .jsonl, .csv, .parquet, and .gz of the text ones); "
        f"found {_contents(Path(place))}. Add the file" + (f", or set {key}." if key else ".")
    )


def _sources(data_config: Any, split: str) -> list[DataSource]:
    if split not in SPLIT_NAMES:
        raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLIT_NAMES)}")
    key = PATH_KEYS.get(split)
    paths = _path_list(getattr(data_config, key)) if key else []
    if paths:
        shares = _shares(data_config, key, len(paths)) if split == "train" else [None] * len(paths)
        return [DataSource(tuple(_files_at(path, split, key)), share) for path, share in zip(paths, shares)]
    place = data_config.dataset_name_or_path
    if place is None:
        return []
    path = existing_path(place, "dataset_name_or_path")
    if path.is_file():
        # one file is the training data; other splits are taken from it only on request (eval_split_ratio)
        return [DataSource((_readable(path, "dataset_name_or_path"),))] if split == "train" else []
    files = _split_files(path, split)
    return [DataSource(tuple(files))] if files else []


def _path_list(value: Any) -> list[str]:
    if value is None:
        return []
    given = [value] if isinstance(value, str) else value
    return [part.strip() for entry in given for part in str(entry).split(",") if part.strip()]


def _shares(data_config: Any, key: str, paths: int) -> list[float | None]:
    given = data_config.train_dataset_prob
    if given is None:
        return [None] * paths
    values = [float(v) for v in (given.split(",") if isinstance(given, str) else given)]
    if len(values) != paths or any(v <= 0 for v in values) or abs(sum(values) - 1) > 1e-3:
        raise DataError(
            f"train_dataset_prob: found {len(values)} shares {values} for {paths} entries of {key}; allowed: as many "
            "shares as paths, each above 0, adding up to 1."
        )
    return list(values)


def _files_at(place: str, split: str, key: str) -> list[Path]:
    path = existing_path(place, key)
    if path.is_file():
        return [_readable(path, key)]
    files = _split_files(path, split) or _data_files(path)
    if not files:
        raise DataError(
            f"{key}: the directory {path} has no data files; found {_contents(path)}; allowed endings: "
            f"{', '.join(SUFFIXES)}."
        )
    return files


def existing_path(place: str, key: str) -> Path:
    """Return a path that exists.

    Args:
        place: as the user gave it.
        key: where it was given, for the message.

    Raises:
        DataError: it does not exist; says what is there instead, or that a hub's name is no local path.
    """
    path = Path(place).expanduser()
    if path.exists():
        return path
    parent = path.parent
    if parent != Path(".") and parent.is_dir():
        raise DataError(f"{key}: {place} does not exist; {parent} has {_contents(parent)}.")
    if path.suffix or place.startswith((".", "/", "~")) or place.count("/") > 1:
        nearest = next((p for p in path.absolute().parents if p.is_dir()), Path("/"))
        raise DataError(f"{key}: {place} does not exist; the nearest directory that does is {nearest}, with "
                        f"{_contents(nearest)}.")  # fmt: skip
    raise DataError(
        f"{key}: found the name {place!r}, which is no file or directory here. Data is read from local files only in "
        "this version, not from a hub: download it first (for instance `huggingface-cli download --repo-type dataset "
        f"{place} --local-dir data`) and give the directory. Here ({Path('.').absolute()}) there is "
        f"{_contents(Path('.'))}."
    )


def _readable(path: Path, key: str) -> Path:
    if container_of(path) is None:
        raise DataError(f"{key}: found the file {path}; allowed endings: {', '.join(SUFFIXES)}.")
    return path


def _split_files(directory: Path, split: str) -> list[Path]:
    for name in SPLIT_NAMES[split]:
        single = [directory / f"{name}{suffix}" for suffix in SUFFIXES if (directory / f"{name}{suffix}").is_file()]
        if len(single) > 1:
            names = ", ".join(file.name for file in single)
            raise DataError(f"{directory} has several files for the {split} split: {names}; leave one, or name it in "
                            f"{PATH_KEYS.get(split, 'dataset_name_or_path')}.")  # fmt: skip
        if single:
            return single
        if (directory / name).is_dir():
            files = _data_files(directory / name)
            if files:
                return files
    return []


def _data_files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.iterdir() if file.is_file() and container_of(file) is not None)


def _contents(place: Path, most: int = 12) -> str:
    if place.is_file():
        return f"the file {place.name}"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in place.iterdir() if entry.name[0] != ".")
    if not names:
        return "nothing"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
