"""Runs a static graph of Paddle, see ``export/static_graph.py``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.inference

from paddlesft.errors import ModelDirectoryError
from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.models.graph_directory import check_files, read_record
from paddlesft.models.steps import CacheShape
from paddlesft.models.steps.inputs import CausalInputs, StepInputs

logger = logging.getLogger("paddlesft")

INPUTS = ("input_ids", "position_ids", "visible", "last")
GPU_MEMORY_MB = 256  # taken at first; it grows as needed


class PaddleGraph:
    """A ``StepModel`` that paddle.inference computes, on the device that is set.

    Args:
        directory: of the graph.
        config: PaddleNLP's config of the model.
        inputs: makes the arguments of a call.
        prefix: of a tuned prefix, or None.

    Raises:
        ModelDirectoryError: files are missing or damaged, or hold another graph than graph.json says.
    """

    def __init__(self, directory: Path, config: Any, inputs: CausalInputs, prefix: np.ndarray | None = None) -> None:
        record = read_record(directory)
        self.config, self.inputs = config, inputs
        self.prefixes = {} if prefix is None else {None: prefix}
        self.cache_shape = CacheShape(record.num_layers, record.num_kv_heads, record.head_dim, record.dtype)
        check_files(directory, record)
        writer = f", written by Paddle {record.paddle_version}" if record.paddle_version else ""
        here = f"Paddle {paddle.__version__} is installed here"
        settings = settings_of(directory / record.program, directory / record.weights if record.weights else None)
        try:
            self._predictor = paddle.inference.create_predictor(settings)
        except Exception as error:  # what is raised depends on where the file ends
            raise ModelDirectoryError(
                f"{directory / record.program}{writer} cannot be read ({_first_line(error)}); {here}. {AGAIN}"
            ) from error
        wanted = [*INPUTS, *(f"past_{number}" for number in range(2 * record.num_layers))]
        found = self._predictor.get_input_names()
        if sorted(found) != sorted(wanted):
            missing = ", ".join(sorted(set(wanted) - set(found))[:3]) or "none missing"
            raise ModelDirectoryError(
                f"{directory / record.program} has {len(found)} inputs, not the {len(wanted)} of a model's step "
                f"(missing: {missing}). {AGAIN}"
            )
        if record.paddle_version not in ("", paddle.__version__):
            logger.warning("%s%s; %s. Export it again should it fail.", directory / record.program, writer, here)
        self._inputs = {name: self._predictor.get_input_handle(name) for name in wanted}
        self._outputs = [self._predictor.get_output_handle(name) for name in self._predictor.get_output_names()]
        self._shared: list[paddle.Tensor] | None = None

    def __call__(self, inputs: StepInputs, cache: KeyValueCache) -> tuple[np.ndarray, np.ndarray]:
        for name in INPUTS:
            self._inputs[name].copy_from_cpu(np.ascontiguousarray(getattr(inputs, name)))
        tensors = cache.tensors()
        if tensors is not self._shared:
            for number, tensor in enumerate(tensors):
                self._inputs[f"past_{number}"].share_external_data(tensor)
            self._shared = tensors
        self._predictor.run()
        logits, new = self._outputs
        return logits.copy_to_cpu(), new.copy_to_cpu()


AGAIN = "Export the model again: paddlesft export."


def settings_of(program: Path, weights: Path | None = None) -> paddle.inference.Config:
    """Return how paddle.inference runs a program here: on the device that is set, with the environment's threads.

    Args:
        program: its file.
        weights: the file of its weights; None where it has none.
    """
    settings = paddle.inference.Config(str(program), str(weights or ""))
    settings.disable_glog_info()
    settings.enable_new_executor(True)
    settings.enable_new_ir(program.suffix == ".json")
    # oneDNN gives equal tokens, prompts up to 1.7 times as fast, and single tokens at half the speed (SmolLM2, 3.3.1).
    # It prints a line for every layer, and refuses some graphs whose sizes are unknown.
    settings.disable_mkldnn()
    kind, _, number = paddle.get_device().partition(":")
    if kind == "gpu":
        settings.enable_use_gpu(GPU_MEMORY_MB, int(number or 0))
    else:
        settings.set_cpu_math_library_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    return settings


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(("-", "="))]
    return lines[-1][:200] if lines else type(error).__name__
