"""Directories that hold a static graph of a model: what is in them, and how that is said in graph.json.

Beside the graph lies everything that another model directory has: config.json, generation_config.json, the tokenizer,
the chat template and paddlesft.json.
"""

from __future__ import annotations

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
