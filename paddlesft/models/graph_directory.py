"""Directories that hold a static graph of a model: what is in them, and how that is said in graph.json.

Beside the graph lies everything that another model directory has: config.json, generation_config.json, the tokenizer,
the chat template and paddlesft.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import read_object

GRAPH_FILE = "graph.json"
PREFIX_FILE = "prefix_cache.npy"  # float32 [2 L, n, w, d]


@dataclass(frozen=True)
class GraphRecord:
    """What graph.json says.

    Attributes:
        format: "paddle" (run by paddle.inference) or "onnx" (run by ONNX Runtime).
        program: the file of the program.
        weights: the file of its weights; "" where the program holds them.
        num_layers: decoder layers; the cache has two inputs for each.
        num_kv_heads: key/value heads, of one rank.
        head_dim: size of one head.
        dtype: of the cache.
        formats: formats of quantized weights, in words; "" for floats.
        rounds_activations: the graph rounds activations to 8 bits where the model does not.
        ranks: tensor-parallel degree; the graphs lie in ``rank_N/``, where it is above 1.
        paddle_version: that wrote it.
        sampling: the file of the program that chooses tokens; "" without one.
        sizes: bytes of the graph's files, by their paths in the directory.
    """

    format: str
    program: str
    weights: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    formats: str = ""
    rounds_activations: bool = False
    ranks: int = 1
    paddle_version: str = ""
    sampling: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)


def holds_graph(directory: Path) -> bool:
    """Whether a directory holds a static graph."""
    return (directory / GRAPH_FILE).is_file()


def write_record(record: GraphRecord, directory: Path) -> None:
    """Write graph.json."""
    text = json.dumps(asdict(record), indent=2) + "\n"
    (directory / GRAPH_FILE).write_text(text, encoding="utf-8")


def read_record(directory: Path) -> GraphRecord:
    """Read graph.json.

    Raises:
        ModelDirectoryError: it is not there or says something else.
    """
    values = read_object(directory / GRAPH_FILE)
    try:
        return GraphRecord(**values)
    except TypeError as error:
        raise ModelDirectoryError(
            f"{directory / GRAPH_FILE} is not what this version writes ({error}). Export the model again."
        ) from error


def graph_files(directory: Path, record: GraphRecord) -> list[Path]:
    """Return the files of a graph, those of ranks too: programs, weights and the prefix."""
    names = {Path(name).name.partition(".")[0] for name in (record.program, record.weights, record.sampling) if name}
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in found if path.name.partition(".")[0] in names or path.name == PREFIX_FILE)


def check_files(directory: Path, record: GraphRecord) -> None:
    """Refuse a graph of which files are missing or torn: Paddle reads a shortened file without a word.

    Raises:
        ModelDirectoryError: naming the first such file.
    """
    for name, size in record.sizes.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ModelDirectoryError(
                f"{path} {state}: the directory is not complete. Copy it again, or export the model again: paddlesft "
                "export."
            )


def hash_graph(directory: Path) -> str:
    """Hash what decides about the numbers of a graph: its program, its weights and its prefix, byte by byte.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    record = read_record(directory)
    for path in graph_files(directory, record):
        if path.name != record.sampling:
            digest.update(f"{path.relative_to(directory).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
