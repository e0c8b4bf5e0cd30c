"""Checkpoints that are complete or absent.

A checkpoint is written into a hidden directory beside its final place. When everything is on the disk,
``complete.json`` (the step, every file and its size) is added and the directory renamed to ``checkpoint-N``. A process
that dies in between leaves a hidden directory, which nobody takes for a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")
SCRATCH = re.compile(r"\.checkpoint-(\d+)\.(incomplete|old)")


def checkpoint_step(path: Path) -> int | None:
    """Return the step in a checkpoint's name; None for other names."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def what_is_missing(path: Path) -> str | None:
    """Return why a directory is not a complete checkpoint, in words; None when it is one.

    Args:
        path: a directory.
    """
    marker = path / MARKER
    if not marker.is_file():
        return f"it has no {MARKER}: it was not written to its end, or by another program"
    try:
        files = json.loads(marker.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"its {MARKER} cannot be read"
    for name, size in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
    return None


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        return []
    found = [p for p in output_dir.iterdir() if p.is_dir() and checkpoint_step(p) is not None]
    return sorted((p for p in found if what_is_missing(p) is None), key=lambda p: checkpoint_step(p) or 0)


def incomplete_checkpoints(output_dir: str | Path) -> list[tuple[Path, str]]:
    """Return what looks like a checkpoint but is not complete, each with the reason, hidden scratch directories too."""
    output_dir = Path(output_dir)
    found = []
    for path in sorted(output_dir.iterdir()) if output_dir.is_dir() else []:
        if not path.is_dir():
            continue
        if SCRATCH.fullmatch(path.name):
            found.append((path, "the run ended while it was being written"))
        elif checkpoint_step(path) is not None and (reason := what_is_missing(path)):
            found.append((path, reason))
    return found


def scratch_directory(output_dir: str | Path, step: int) -> Path:
    """Return where ``checkpoint-{step}`` is written before it has its name."""
    return Path(output_dir) / f".checkpoint-{step}.incomplete"


@contextmanager
def new_checkpoint(output_dir: str | Path, step: int) -> Iterator[Path]:
    """Give a scratch directory that becomes ``checkpoint-{step}`` once the block has succeeded.

    Args:
        output_dir: the run's directory; it exists.
        step: optimizer steps done.

    Yields:
        The scratch directory.
    """
    output_dir = Path(output_dir)
    final = output_dir / f"checkpoint-{step}"
    scratch = scratch_directory(output_dir, step)
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir()
    yield scratch
    seal(scratch, step)
    if final.exists():  # the same step again, after resuming from an earlier one
        old = output_dir / f".checkpoint-{step}.old"
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        os.rename(scratch, final)
        shutil.rmtree(old)
    else:
        os.rename(scratch, final)
    _flush_directory(output_dir)


def seal(directory: Path, step: int) -> None:
    """Bring every file of a directory to the disk and add the marker that says so."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(directory).as_posix()] = path.stat().st_size
    _flush_directory(directory)
    beside = directory / f"{MARKER}.part"
    with beside.open("w", encoding="utf-8") as file:
        json.dump({"step": step, "files": files}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, directory / MARKER)
    _flush_directory(directory)


def _flush_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def delete_old_checkpoints(output_dir: str | Path, limit: int | None, best: str | None = None) -> list[Path]:
    """Delete the oldest complete checkpoints beyond a limit. The newest and the best are never deleted.

    Args:
        output_dir: the run's directory.
        limit: checkpoints to keep; None keeps all.
        best: the checkpoint with the best metric so far.

    Returns:
        What was deleted.
    """
    if not limit:
        return []
    checkpoints = complete_checkpoints(output_dir)
    protected = {checkpoints[-1].name} if checkpoints else set()
    if best:
        protected.add(Path(best).name)
    deleted = []
    for path in checkpoints:
        if len(checkpoints) - len(deleted) <= limit:
            break
        if path.name in protected:
            continue
        doomed = path.with_name(f".{path.name}.old")  # half a deletion must not look like a checkpoint
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed)
        deleted.append(path)
    return deleted
