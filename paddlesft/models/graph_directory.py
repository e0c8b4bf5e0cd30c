"""Directories that hold a static graph of a model: what is in them, and how that is said in graph.json.

Beside the graph lies everything that another model directory has: config.json, generation_config.json, the tokenizer,
the chat template and paddlesft.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
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
        ranks: tensor-parallel degree; the graphs lie in ``rank_N/``, where it is above 1.
        paddle_version: that wrote it.
        sampling: the file of the program that chooses tokens; "" without one.
    """

    format: str
    program: str
    weights: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    formats: str = ""
    ranks: int = 1
    paddle_version: str = ""
    sampling: str = ""


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


def hash_graph(directory: Path) -> str:
    """Hash what decides about the numbers of a graph: its program, its weights and its prefix, byte by byte.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    record = read_record(directory)
    names = {Path(record.program).stem, Path(record.weights or record.program).stem}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and (path.name.partition(".")[0] in names or path.name == PREFIX_FILE):
            digest.update(f"{path.relative_to(directory).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
