"""Model names -> local directories."""

from __future__ import annotations

from pathlib import Path

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.embedded import PREFIX, embedded_model


def resolve_model(name_or_path: str | Path) -> Path:
    """Return the local directory of a model.

    Args:
        name_or_path: a directory, or ``embedded:smollm2``.

    Raises:
        ModelDirectoryError: it is neither.
    """
    name = str(name_or_path)
    if name.startswith(PREFIX):
        return embedded_model(name.removeprefix(PREFIX))
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    raise ModelDirectoryError(f"{name!r} is not a directory.")
