"""Directories and files that appear complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddlesft.errors import FileProblem, UserError


@contextmanager
def new_directory(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a scratch directory beside ``path`` that takes its name once the block has succeeded.

    Args:
        path: the directory to create. Parents are created.
        overwrite: replace ``path`` when it already has content. The old content stays until the new one is complete.

    Yields:
        The scratch directory; it lies on the same file system, so the final rename is atomic.

    Raises:
        UserError: ``path`` exists, is not an empty directory, and ``overwrite`` is false; or it cannot be created.
    """
    target = Path(path)
    refuse_taken(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".incomplete", dir=target.parent))
    except OSError as error:
        error.filename = target.parent  # not the scratch directory's name, which means nothing to the user
        raise FileProblem(error, f"Cannot create {target} in") from error
    os.chmod(scratch, 0o755)
    try:
        yield scratch
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            os.rename(target, old / target.name)
            os.rename(scratch, target)
            shutil.rmtree(old)
        else:
            os.rename(scratch, target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def refuse_taken(target: Path, overwrite: bool = False, switch: str = "--overwrite") -> None:
    """Refuse a place for a new directory that has content; ``new_directory`` asks, and whoever starts long before.

    Args:
        target: the place.
        overwrite: whether a directory may be replaced.
        switch: what the user gives for that.

    Raises:
        UserError: ``target`` exists, is not an empty directory, and ``overwrite`` is false or cannot help; or a file
            stands where a directory above it is needed.
    """
    refuse_below_file(target)
    taken = target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir()))
    replaceable = overwrite and target.is_dir() and not target.is_symlink()
    if taken and not replaceable:
        full = target.is_dir() and not target.is_symlink()
        kind = "a directory that is not empty" if full else "a symbolic link" if target.is_symlink() else "a file"
        instead = f"let {switch} replace this one" if full else "remove it first"
        raise UserError(
            f"Cannot write to {target}: it is {kind}. Nothing was changed. "
            f"Choose a directory that does not exist yet, or {instead}."
        )


def refuse_below_file(target: Path) -> None:
    """Refuse a place for a new file or directory that has a file above it.

    Raises:
        UserError: naming both.
    """
    above = next((place for place in target.absolute().parents if place.exists()), None)
    if above is not None and not above.is_dir():
        raise UserError(
            f"Cannot write to {target}: {above} is a file, and a directory is needed there. Nothing was changed. "
            "Choose a place that does not lie below a file."
        )


def refuse_inside(target: str | Path, *inputs: str | Path | None) -> None:
    """Refuse a place for a new directory that is, or lies in, one of the directories it is made from.

    Raises:
        UserError: naming both.
    """
    for source in inputs:
        if source is not None and Path(target).resolve().is_relative_to(Path(source).resolve()):
            where = "is" if Path(target).resolve() == Path(source).resolve() else "lies in"
            raise UserError(
                f"Cannot write to {target}: it {where} the directory that is read, {source}. Inputs are never changed: "
                "choose another directory."
            )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, and the directories above it; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
