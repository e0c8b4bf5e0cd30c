"""Runs an ONNX graph of a model in ONNX Runtime, see ``export/onnx_graph.py``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.models.graph_directory import read_record
from paddlesft.models.steps import CacheShape
from paddlesft.models.steps.inputs import CausalInputs, StepInputs


class OnnxGraph:
    """A ``StepModel`` that ONNX Runtime computes; arguments as for ``PaddleGraph``."""

    def __init__(self, directory: Path, config: Any, inputs: CausalInputs, prefix: np.ndarray | None = None) -> None:
        import onnxruntime

        record = read_record(directory)
        self.config, self.inputs, self.prefix = config, inputs, prefix
        self.cache_shape = CacheShape(record.num_layers, record.num_kv_heads, record.head_dim, record.dtype)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        self._session = onnxruntime.InferenceSession(
            str(directory / record.program), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, inputs: StepInputs, cache: KeyValueCache) -> tuple[np.ndarray, np.ndarray]:
        given = {"input_ids": inputs.input_ids, "position_ids": inputs.position_ids, "visible": inputs.visible}
        given["last"] = inputs.last
        given.update((f"past_{number}", array) for number, array in enumerate(cache.block))
        return tuple(self._session.run(None, given))
