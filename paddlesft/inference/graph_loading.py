"""A directory with a static graph -> what the decode loop drives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from paddlesft.errors import ModelDirectoryError
from paddlesft.inference.onnx_graph import OnnxGraph
from paddlesft.inference.paddle_graph import PaddleGraph
from paddlesft.inference.step_model import StepModel
from paddlesft.models.families import family_of
from paddlesft.models.graph_directory import GRAPH_FILE, PREFIX_FILE, GraphRecord, check_files, holds_graph, read_record
from paddlesft.models.load import load_config
from paddlesft.models.provenance import read_provenance

OPENERS: dict[str, Callable[..., StepModel]] = {"paddle": PaddleGraph, "onnx": OnnxGraph}
AGAIN = "Export the model again: paddlesft export."


def open_graph(directory: str | Path, pad_token_id: int = 0) -> StepModel:
    """Open a static graph, written for Paddle or for ONNX Runtime.

    Args:
        directory: that ``paddlesft export`` wrote.
        pad_token_id: any valid id; it fills shorter rows and is masked.

    Returns:
        The graph, with the keys and values of its tuned prefix where it has one.

    Raises:
        ModelDirectoryError: there is no graph, files are missing or torn, or it was written by another version.
        EnvironmentProblem: the package that runs it is missing.
    """
    directory = Path(directory)
    if not holds_graph(directory):
        raise ModelDirectoryError(f"{directory} has no {GRAPH_FILE}: it holds no static graph. {AGAIN}")
    record = read_record(directory)
    where = directory / GRAPH_FILE
    if record.format not in OPENERS:
        raise ModelDirectoryError(
            f"{where}: format is {record.format!r}; this version runs {' and '.join(OPENERS)}. Update paddlesft, or "
            "export the model again with this version."
        )
    if record.ranks > 1:
        raise ModelDirectoryError(
            f"{where}: the graph is divided among {record.ranks} ranks, and this command runs in one process. Export "
            "the whole model: paddlesft export without paddle.distributed.launch."
        )
    check_files(directory, record)
    prefix = read_prefix(directory, record)
    config = load_config(directory)
    inputs = family_of(config).step_inputs()(config.to_dict(), pad_token_id)
    return OPENERS[record.format](directory, config, inputs, prefix)


def read_prefix(directory: Path, record: GraphRecord) -> np.ndarray | None:
    """Return keys and values of a tuned prefix, float32 [2 L, n, w, d]; None where the graph has none.

    Raises:
        ModelDirectoryError: the file is damaged or of another model.
    """
    path = directory / PREFIX_FILE
    if not path.is_file():
        return None
    try:
        prefix = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ModelDirectoryError(f"{path} cannot be read ({error}). {AGAIN}") from error
    wanted = (2 * record.num_layers, record.num_kv_heads, record.head_dim)
    if prefix.ndim != 4 or (prefix.shape[0], prefix.shape[1], prefix.shape[3]) != wanted:
        raise ModelDirectoryError(
            f"{path} has the shape {list(prefix.shape)}; {GRAPH_FILE} asks for [{wanted[0]}, {wanted[1]}, w, "
            f"{wanted[2]}]. {AGAIN}"
        )
    return prefix


def origin_of(directory: Path) -> str:
    """Return the path of the model that a graph was made from, as it says itself; "" where it does not."""
    return str((read_provenance(directory).get("base") or {}).get("path") or "")
