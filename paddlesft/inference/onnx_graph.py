"""Runs an ONNX graph of a model in ONNX Runtime, see ``export/onnx_graph.py``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlesft.errors import EnvironmentProblem, ModelDirectoryError
from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.known_versions import EXTRAS
from paddlesft.models.graph_directory import check_files, read_record
from paddlesft.models.steps import CacheShape
from paddlesft.models.steps.inputs import CausalInputs, StepInputs

logger = logging.getLogger("paddlesft")

INPUTS = ("input_ids", "position_ids", "visible", "last")
OUTPUTS = ["logits", "new_cache"]
AGAIN = "Export the model again: paddlesft export --format onnx."
ERRORS_ONLY = 3


class OnnxGraph:
    """A ``StepModel`` that ONNX Runtime computes, with the environment's threads (``OMP_NUM_THREADS``).

    The cache is read where it lies; logits and new keys and values are copied out.

    Args:
        directory: of the graph.
        config: PaddleNLP's config of the model.
        inputs: makes the arguments of a call.
        prefix: of a tuned prefix, or None.

    Raises:
        EnvironmentProblem: ONNX Runtime is not installed.
        ModelDirectoryError: files are missing or damaged, or hold another graph than graph.json says.
    """

    def __init__(self, directory: Path, config: Any, inputs: CausalInputs, prefix: np.ndarray | None = None) -> None:
        onnxruntime = _imported()
        record = read_record(directory)
        self.config, self.inputs = config, inputs
        self.prefixes = {} if prefix is None else {None: prefix}
        self.cache_shape = CacheShape(record.num_layers, record.num_kv_heads, record.head_dim, record.dtype)
        check_files(directory, record)
        program = directory / record.program
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
        providers = ["CPUExecutionProvider"]
        if paddle.get_device() != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self._session = onnxruntime.InferenceSession(str(program), options, providers=providers)
        except Exception as error:  # of many classes, by what is wrong
            raise ModelDirectoryError(
                f"{program} cannot be read by ONNX Runtime {onnxruntime.__version__} ({_first_line(error)}). {AGAIN}"
            ) from error
        self._names = [f"past_{number}" for number in range(2 * record.num_layers)]
        _compare(program, "inputs", {one.name for one in self._session.get_inputs()}, {*INPUTS, *self._names})
        _compare(program, "outputs", {one.name for one in self._session.get_outputs()}, set(OUTPUTS))

    def __call__(self, inputs: StepInputs, cache: KeyValueCache) -> tuple[np.ndarray, np.ndarray]:
        given = {name: getattr(inputs, name) for name in INPUTS}
        given.update(zip(self._names, cache.block))
        logits, new = self._session.run(OUTPUTS, given)
        return logits, new


def _imported() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        wanted = next(part for part in EXTRAS["onnx"] if part.name == "onnxruntime")
        raise EnvironmentProblem(
            f"Running ONNX graphs needs the package onnxruntime: {error}. Run: pip install "
            f"'{wanted.name}{wanted.allowed}'"
        ) from error
    return onnxruntime


def _compare(program: Path, what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        missing = ", ".join(sorted(wanted - found)[:3]) or "none missing"
        raise ModelDirectoryError(
            f"{program} has {len(found)} {what}, not the {len(wanted)} of a model's step (missing: {missing}). {AGAIN}"
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
