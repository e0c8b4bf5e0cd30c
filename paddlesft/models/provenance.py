"""``paddlesft.json``: where a model or adapter directory comes from, so that the next verb need not ask the user.

Keys written by this package: ``kind`` ("model" or "adapter"), ``source`` (what it was made from), ``dtype``,
``fingerprint`` (of the directory's own weights), ``base`` (``{"name", "path", "fingerprint"}`` of the model under an
adapter or a fine-tuned model), ``versions``. A step adds what it knows: template, resolved config, data fingerprint.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from paddlesft import __version__
from paddlesft.directories import write_json
from paddlesft.errors import ModelDirectoryError
from paddlesft.models.graph_directory import hash_graph, holds_graph
from paddlesft.models.weights import hash_weights

FILE = "paddlesft.json"
FORMAT = 1


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that shape a result; absent packages are left out."""
    versions = {"paddlesft": __version__}
    for name in ("paddlepaddle", "paddlepaddle-gpu", "paddlenlp"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_provenance(directory: str | Path, **facts: Any) -> Path:
    """Write ``paddlesft.json`` into a directory that this package has made.

    Args:
        directory: a model or adapter directory (or the scratch directory it is being written to).
        facts: JSON values, see the module's text.

    Returns:
        The path of the file.
    """
    path = Path(directory) / FILE
    content = {"format": FORMAT, **facts, "versions": tool_versions()}
    write_json(path, content)
    return path


def read_provenance(directory: str | Path) -> dict[str, Any]:
    """Read ``paddlesft.json``.

    Returns:
        Its content; an empty dict when the directory was made by another tool.

    Raises:
        ModelDirectoryError: the file cannot be read, or was written by a later version of this package.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelDirectoryError(
            f"{path} is not JSON ({error}). Restore it, or delete it to go on without."
        ) from error
    if not isinstance(content, dict):
        raise ModelDirectoryError(f"{path} holds no JSON object. Restore it, or delete it to go on without.")
    if content.get("format", FORMAT) > FORMAT:
        raise ModelDirectoryError(
            f"{path} has format {content['format']}; this version knows up to {FORMAT}. Update paddlesft."
        )
    return content


def fingerprint(directory: str | Path) -> str:
    """Return ``sha256:...`` of a directory's weights by content (names, types, shapes, values).

    Two directories with the same tensors have the same fingerprint, however they are split into files. A static
    graph is taken as it is, byte by byte.

    Raises:
        ModelDirectoryError: there are no weights.
    """
    directory = Path(directory)
    return f"sha256:{hash_graph(directory) if holds_graph(directory) else hash_weights(directory)}"


def base_facts(directory: str | Path, name: str | None = None) -> dict[str, str]:
    """Describe a base model for the ``base`` entry of what is made from it.

    Args:
        directory: the base's model directory.
        name: the name that the user gave (``embedded:smollm2``, a hub name); the path when None.

    Returns:
        ``{"name", "path", "fingerprint"}``.
    """
    path = Path(directory).resolve()
    return {"name": name or str(path), "path": str(path), "fingerprint": fingerprint(path)}
