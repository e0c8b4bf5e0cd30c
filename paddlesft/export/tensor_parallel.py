"""A graph whose layers are divided among ranks: each traces its part, and all run what they have written together.

The programs hold two collectives, ``mp_allreduce_sum`` and ``all_gather``, which Paddle has for GPUs and CPUs alike.
``c_identity`` computes nothing without gradients and ``c_concat`` has no CPU kernel (paddlepaddle 3.3.1: "Do not
support c_concat for cpu kernel now"), so neither is traced.

paddle.inference has no ranks in Paddle's CPU package (``Config.dist_config`` is missing there). The ranks run their
programs with Paddle's static executor instead, which serves both.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import paddle
from paddle import _C_ops
from paddle.base import core

from paddlesft.directories import new_directory
from paddlesft.export.check import NEW_TOKENS, CheckReport, GraphDiffers, compare_with, replies_of
from paddlesft.export.directory import (
    ExportReport,
    OnStage,
    prompts_of_check,
    provenance_of,
    refuse_inputs,
    share_of,
    write_beside,
)
from paddlesft.export.sampling import write_sampling
from paddlesft.export.static_graph import NAME, write_static_graph
from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.inference.loading import Loaded
from paddlesft.models.decoders.causal import tensor_parallel_group
from paddlesft.models.families import family_of
from paddlesft.models.graph_directory import GraphRecord, graph_files, write_record
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.steps import CacheShape, refuse_without_step
from paddlesft.models.steps.inputs import CausalInputs, StepInputs
from paddlesft.parallel import gloo

MAPPING_FILE = "rank_mapping.csv"
INPUTS = ("input_ids", "position_ids", "visible", "last")


def export_ranks(
    loaded: Loaded,
    output: str | Path,
    name: str | None = None,
    overwrite: bool = False,
    new_tokens: int = NEW_TOKENS,
    chat_template: str | None = None,
    on_stage: OnStage = lambda text: None,
) -> ExportReport:
    """Write a model that is divided among ranks as one program for each, complete and proved, or not at all.

    All ranks call this; ``output`` is a directory that all of them see. The truth is PaddleNLP's forward pass of the
    divided model, see ``export/check.py``; each rank compares the logits of its own program.

    Args:
        loaded: this rank's part, without an adapter.
        output: the directory to create.
        name: what the user calls the base.
        overwrite: replace ``output`` when it has content.
        new_tokens: tokens that are compared for each prompt.
        chat_template: see ``export_graph``.
        on_stage: told what is done next.

    Raises:
        UserError: as ``export_graph``.
        GraphDiffers: the programs do not compute what the model does; nothing is left behind.
    """
    began, output, model, group = time.perf_counter(), Path(output), loaded.model, tensor_parallel_group()
    refuse_inputs(output, loaded)
    refuse_without_step(model)
    on_stage(f"the ranks answer the questions of the check, {new_tokens} tokens each")
    prompts = prompts_of_check(loaded, new_tokens)
    replies = replies_of(model, prompts, new_tokens)
    first = group.rank == 0
    with new_directory(output, overwrite) if first else contextlib.nullcontext() as own:
        directory = _told_by_first(own)
        on_stage("tracing and writing the programs of the ranks")
        start = time.perf_counter()
        record = write_rank_graph(model, directory)
        trace_seconds = time.perf_counter() - start
        _sum_over_ranks(0)  # all have written
        if first:
            record = replace(record, sampling=write_sampling(directory))
            files = graph_files(directory, record)
            sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}
            record = replace(record, sizes=sizes)
            write_record(record, directory)
            write_beside(loaded, directory, chat_template)
        on_stage("the ranks run what was written")
        inputs = family_of(model.config).step_inputs()(model.config.to_dict(), loaded.pad_token_id)
        checked = compare_with(RankGraph(directory, record, model.config, inputs), replies, share_of(model))
        refuse_faults_of_any(checked)
        if first:
            facts = provenance_of(loaded, name, "", record, chat_template)
            write_provenance(directory, **facts, fingerprint=fingerprint(directory), checked=checked.facts())
    return ExportReport(output, record, checked, "", trace_seconds, time.perf_counter() - began)


def _told_by_first(path: Path | None) -> Path:
    """Return the directory that the first rank has made."""
    told = [None if path is None else str(path)]
    paddle.distributed.broadcast_object_list(told, src=0, group=tensor_parallel_group())
    return Path(told[0])


def refuse_faults_of_any(checked: CheckReport) -> None:
    """Raise in every rank where one found a fault: none waits for others that have ended, and the first cleans up.

    Raises:
        GraphDiffers: naming this rank's faults, or saying that others have some.
    """
    wrong = _sum_over_ranks(bool(checked.faults))
    checked.refuse_faults()
    if wrong:
        raise GraphDiffers(
            f"The programs of {wrong} other ranks do not compute what the model in memory does; their logs name "
            "prompts and positions. The export was not kept."
        )


def _sum_over_ranks(value: int) -> int:
    """Wait until all ranks are here, and add their numbers."""
    total = paddle.to_tensor([float(value)])
    paddle.distributed.all_reduce(total, group=tensor_parallel_group())
    return int(total)


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
    prefixes: ClassVar[dict[str | None, Any]] = {}

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
