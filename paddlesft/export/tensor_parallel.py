"""A graph whose layers are divided among ranks: each traces its part, and all run what they have written together.

The programs hold two collectives, ``mp_allreduce_sum`` and ``all_gather``, which Paddle has for GPUs and CPUs alike.
``c_identity`` computes nothing without gradients and ``c_concat`` has no CPU kernel (paddlepaddle 3.3.1: "Do not support
c_concat for cpu kernel now"), so neither is traced.

paddle.inference has no ranks in Paddle's CPU package (``Config.dist_config`` is missing there). The ranks run their
programs with Paddle's static executor instead, which serves both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import paddle
from paddle import _C_ops
from paddle.base import core
from paddle.distributed import fleet

from paddlesft.export.static_graph import NAME, write_static_graph
from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.models.decoders.causal import tensor_parallel_group
from paddlesft.models.graph_directory import GraphRecord
from paddlesft.models.steps import CacheShape
from paddlesft.models.steps.inputs import CausalInputs, StepInputs
from paddlesft.parallel import gloo

MAPPING_FILE = "rank_mapping.csv"
INPUTS = ("input_ids", "position_ids", "visible", "last")


def start_ranks() -> tuple[int, int]:
    """Let the processes that a launcher has started share each layer.

    Returns:
        How many there are, and which of them this is.
    """
    gloo.install()
    ranks = paddle.distributed.get_world_size()
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {"dp_degree": 1, "mp_degree": ranks, "pp_degree": 1, "sharding_degree": 1}
    fleet.init(is_collective=True, strategy=strategy)
    return ranks, paddle.distributed.get_rank()


def rank_directory(directory: Path, rank: int) -> Path:
    """Return where a rank's program and weights lie."""
    return directory / f"rank_{rank}"


def write_rank_graph(model: paddle.nn.Layer, directory: Path) -> GraphRecord:
    """Trace this rank's part of a model and write it into ``rank_N/``; the first rank writes the mapping, too.

    Args:
        model: divided among the ranks, in evaluation mode.
        directory: where to write, the same on all ranks; exists.

    Returns:
        What was written; its files are named as they lie in each rank's directory.
    """
    group = tensor_parallel_group()
    own = rank_directory(directory, group.rank)
    own.mkdir()
    with _portable_collectives():
        record = write_static_graph(model, own)
    if group.rank == 0:
        (directory / MAPPING_FILE).write_text(rank_mapping(group.id, group.nranks), encoding="utf-8")
    return GraphRecord(**{**vars(record), "ranks": group.nranks})


def rank_mapping(ring: int, ranks: int) -> str:
    """Say which ranks are in which ring of collectives, as ``paddle.inference`` reads it (``set_comm_init_config``).

    Args:
        ring: the one of the programs' collectives; ring 0 is that of all ranks.
        ranks: how many there are.
    """
    members = ",".join(map(str, range(ranks)))
    lines = ["[ring_id -> ranks]", f"0,{members}", f"{ring},{members}", "[rank -> ring_ids]"]
    return "\n".join([*lines, *(f"{rank},0,{ring}" for rank in range(ranks))]) + "\n"


@contextlib.contextmanager
def _portable_collectives() -> Iterator[None]:
    """Trace collectives that have kernels on every device."""

    def joined(x: Any, rank: int, ranks: int, ring: int, *_: Any) -> Any:
        return paddle.concat(paddle.split(_C_ops.all_gather(x, ring, ranks), ranks, axis=0), axis=-1)

    with mock.patch.object(_C_ops, "c_identity", lambda x, *_: x), mock.patch.object(_C_ops, "c_concat", joined):
        yield


class RankGraph:
    """A ``StepModel`` that all ranks compute together: every one makes the same calls.

    Args:
        directory: of the graph, ``rank_N`` in it.
        record: what graph.json says.
        config: PaddleNLP's config of the model.
        inputs: makes the arguments of a call.
    """

    cache_on_device = False
    prefix = None

    def __init__(self, directory: Path, record: GraphRecord, config: Any, inputs: CausalInputs) -> None:
        self.config, self.inputs = config, inputs
        self.cache_shape = CacheShape(record.num_layers, record.num_kv_heads, record.head_dim, record.dtype)
        group = tensor_parallel_group()
        manager = core.CommContextManager
        if gloo.installed() and group.id not in _CONTEXTS:
            store = core.create_or_get_global_tcp_store()
            manager.create_gloo_comm_context(store, str(group.id), group.rank, group.nranks)
            _CONTEXTS.add(group.id)
        self._scope = paddle.static.Scope()
        self._executor = paddle.static.Executor(paddle.get_device() if not gloo.installed() else paddle.CPUPlace())
        with _static_mode(), paddle.static.scope_guard(self._scope):
            self._program, self._names, self._outputs = paddle.static.load_inference_model(
                os.fspath(rank_directory(directory, group.rank) / NAME), self._executor
            )

    def __call__(self, inputs: StepInputs, cache: KeyValueCache) -> tuple[np.ndarray, np.ndarray]:
        values = {name: np.ascontiguousarray(getattr(inputs, name)) for name in INPUTS}
        values.update((f"past_{i}", np.ascontiguousarray(tensor.numpy())) for i, tensor in enumerate(cache.tensors()))
        feed = {name: values[name] for name in self._names}
        with _static_mode(), paddle.static.scope_guard(self._scope):
            logits, new = self._executor.run(self._program, feed=feed, fetch_list=self._outputs)
        return logits, new


_CONTEXTS: set[int] = set()  # rings that the executor knows already; Paddle keeps them as long as the process


@contextlib.contextmanager
def _static_mode() -> Iterator[None]:
    paddle.enable_static()
    try:
        yield
    finally:
        paddle.disable_static()
