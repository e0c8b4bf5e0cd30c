"""The user's cache: models that were downloaded, converted or imported once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from paddlesft.directories import new_directory
from paddlesft.errors import EnvironmentProblem, FileProblem

VARIABLE = "PADDLESFT_HOME"


def cache_home() -> Path:
    """Return the cache's directory: ``PADDLESFT_HOME``, else ``paddlesft`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve() / "paddlesft"


def cached_directory(key: str, make: Callable[[Path], None]) -> Path:
    """Return a directory of the cache, making it first when it is not there.

    Args:
        key: its path below the cache, naming the content (two contents never share a key).
        make: fills an empty scratch directory; the directory takes its name only if this succeeds.

    Returns:
        The complete directory. Processes that ask at the same time wait for the one that makes it.

    Raises:
        EnvironmentProblem: the cache cannot be written to.
    """
    path = cache_home() / key
    if path.is_dir():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f".{path.name}.lock").touch()
    except OSError as error:
        error.filename = path.parent
        advice = f"The cache is {cache_home()}; {VARIABLE} names another place for it."
        raise EnvironmentProblem(f"{FileProblem(error, 'Cannot write to')} {advice}") from error
    with FileLock(str(path.parent / f".{path.name}.lock")):
        if not path.is_dir():
            with new_directory(path) as scratch:
                make(scratch)
    return path
