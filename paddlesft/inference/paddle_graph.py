"""Runs a static graph of Paddle, see ``export/static_graph.py``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.inference

from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.models.graph_directory import read_record
from paddlesft.models.steps import CacheShape
from paddlesft.models.steps.inputs import CausalInputs, StepInputs

INPUTS = ("input_ids", "position_ids", "visible", "last")


class PaddleGraph:
    """A ``StepModel`` that paddle.inference computes.

    Args:
        directory: of the graph.
        config: PaddleNLP's config of the model.
        inputs: makes the arguments of a call.
        prefix: of a tuned prefix, or None.
    """

    def __init__(self, directory: Path, config: Any, inputs: CausalInputs, prefix: np.ndarray | None = None) -> None:
        record = read_record(directory)
        self.config, self.inputs, self.prefix = config, inputs, prefix
        self.cache_shape = CacheShape(record.num_layers, record.num_kv_heads, record.head_dim, record.dtype)
        settings = paddle.inference.Config(str(directory / record.program), str(directory / record.weights))
        settings.disable_mkldnn()  # measured: quicker without oneDNN
        settings.disable_glog_info()
        settings.enable_new_executor(True)
        settings.enable_new_ir(True)
        settings.set_cpu_math_library_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self._predictor = paddle.inference.create_predictor(settings)
        self._shared: list[paddle.Tensor] | None = None

    def __call__(self, inputs: StepInputs, cache: KeyValueCache) -> tuple[np.ndarray, np.ndarray]:
        predictor = self._predictor
        for name in INPUTS:
            predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(getattr(inputs, name)))
        tensors = cache.tensors()
        if tensors is not self._shared:
            for number, tensor in enumerate(tensors):
                predictor.get_input_handle(f"past_{number}").share_external_data(tensor)
            self._shared = tensors
        predictor.run()
        logits, new = (predictor.get_output_handle(name) for name in predictor.get_output_names())
        return logits.copy_to_cpu(), new.copy_to_cpu()
