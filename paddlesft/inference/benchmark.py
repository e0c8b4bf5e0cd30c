"""How fast a model or a static graph is here, and how much of the machine it uses: the library of the benchmark verb.

Prompts and single tokens are timed apart. Two figures say how far from the machine's limits they are: operations
against the fastest matrix product (what bounds prompts), and bytes that have to be read against the fastest copy (what
bounds decoding, where every weight is read for a few operations).
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlesft.data.conversation import Conversation, Message
from paddlesft.errors import UserError
from paddlesft.inference.decoder_cost import DecoderCost, bytes_looked_up, decoder_cost
from paddlesft.inference.generation import evaluating
from paddlesft.inference.loading import Loaded
from paddlesft.inference.machine_peaks import Peak, copy_bandwidth, peak_flops, threads_here, wait_for_device
from paddlesft.inference.prompts import fit_prompt
from paddlesft.inference.runners import runner_of
from paddlesft.models.graph_directory import holds_graph, read_record
from paddlesft.models.load import without_second_names
from paddlesft.models.provenance import tool_versions
from paddlesft.quirks.released_memory import give_back

FORMAT = 1  # of the JSON
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        prompt_length: tokens of each prompt.
        new_tokens: tokens decoded after it.
        batch_sizes: rows; each number is measured on its own.
        warm_up: rounds whose times do not count.
        repetitions: rounds whose times do.
    """

    prompt_length: int = 128
    new_tokens: int = 64
    batch_sizes: tuple[int, ...] = (1, 8)
    warm_up: int = 1
    repetitions: int = 5


@dataclass(frozen=True)
class Spread:
    """Seconds of some repetitions."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Measured:
    """One batch size.

    Attributes:
        batch_size: b.
        prefill_seconds: of all prompts together, until the first new tokens are known.
        token_seconds: of one decoding step, which gives every row a token.
        prefill_tokens_per_second, decode_tokens_per_second: of all rows together.
        prefill_flops, step_flops: operations that are needed, see ``decoder_cost.py``.
        step_bytes: weights and cache that a step has to read.
        cache_bytes: keys and values at the end of a round.
        prefill_utilisation, decode_utilisation: of the machine's operations per second.
        bandwidth_utilisation: of the machine's bytes per second, while decoding.
        peak_memory: most bytes held in a round, above those from before the model was loaded; on a GPU the most
            allocated there.
    """

    batch_size: int
    prefill_seconds: Spread
    token_seconds: Spread
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    prefill_flops: float
    step_flops: float
    step_bytes: float
    cache_bytes: float
    prefill_utilisation: float
    decode_utilisation: float
    bandwidth_utilisation: float
    peak_memory: int


def run_benchmark(
    loaded: Loaded, settings: Settings, memory: Memory, on_batch: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Measure a model.

    Args:
        loaded: a model in memory or a static graph, with its adapter.
        settings: what is measured.
        memory: made before the model was loaded.
        on_batch: told of each batch size as it begins.

    Returns:
        A JSON object: ``format``, ``machine``, ``versions``, ``model``, ``settings``, ``memory``, ``peaks`` and
        ``results``, a ``Measured`` for each batch size.

    Raises:
        UserError: prompt and reply are longer than the model's context.
    """
    refuse_length(loaded, settings)
    weights = weight_bytes(loaded)
    memory.start()
    loaded_memory = memory.now()
    rounds = {}
    with evaluating(loaded.model):
        for rows in settings.batch_sizes:
            if on_batch is not None:
                on_batch(rows)
            rounds[rows] = _rounds(loaded, settings, rows, memory)
    dtype = number_type(loaded)
    peaks = {"flops": peak_flops(dtype), "bandwidth": copy_bandwidth(threads_here())}
    cost = cost_of(loaded)
    read = weights - bytes_looked_up(loaded.model.config.to_dict(), NUMBER_BYTES[dtype])
    results = [
        _measured(settings, rows, cost, read, NUMBER_BYTES[dtype], peaks, *times) for rows, times in rounds.items()
    ]
    return {
        "format": FORMAT,
        "machine": machine_facts(),
        "versions": versions(),
        "model": model_facts(loaded, cost, weights),
        "settings": asdict(settings),
        "memory": {"weights": weights, "loaded": loaded_memory},
        "peaks": {name: asdict(peak) for name, peak in peaks.items()},
        "results": [asdict(result) for result in results],
    }


def refuse_length(loaded: Loaded, settings: Settings) -> None:
    """Refuse texts that the model cannot hold.

    Raises:
        UserError: naming both lengths.
    """
    context = loaded.context_length
    wanted = settings.prompt_length + settings.new_tokens
    if context is not None and wanted > context:
        raise UserError(
            f"prompt_length {settings.prompt_length} and new_tokens {settings.new_tokens} make {wanted} tokens; "
            f"{loaded.directory} holds {context} (context length of config.json). Lower one of them."
        )


def prompts_of(loaded: Loaded, length: int, rows: int) -> list[list[int]]:
    """Return prompts of exactly ``length`` tokens, each another one, as the model's template writes them."""
    prompts = []
    for row in range(rows):
        text = " ".join(str(number) for number in range(row, row + 2 * length))  # two numbers are two tokens or more
        ids = fit_prompt(loaded.renderer, Conversation([Message("user", text)]), length).ids
        if len(ids) != length:
            raise UserError(f"prompt_length: {length} tokens could not be made, only {len(ids)}. Try another length.")
        prompts.append(ids)
    return prompts


def _rounds(loaded: Loaded, settings: Settings, rows: int, memory: Memory) -> tuple[list[float], list[float], int]:
    """Return the seconds of prompts and of a step in each round, and the most memory held."""
    prompts = prompts_of(loaded, settings.prompt_length, rows)
    prefill, step = [], []
    memory.start()
    for turn in range(settings.warm_up + settings.repetitions):
        runner = runner_of(loaded.model, loaded.pad_token_id)
        wait_for_device()
        begin = time.perf_counter()
        tokens = choose(runner.prefill(prompts))
        first = time.perf_counter()
        for _ in range(settings.new_tokens):
            tokens = choose(runner.step(tokens))
        end = time.perf_counter()
        if turn >= settings.warm_up:
            prefill.append(first - begin)
            step.append((end - first) / settings.new_tokens)
    return prefill, step, memory.most()


def choose(logits: Any) -> np.ndarray:
    """Return the most likely tokens, int64 [b], in main memory, where the next step's arguments are made."""
    best = logits.argmax(axis=-1)
    return best if isinstance(best, np.ndarray) else best.numpy()


def _measured(
    settings: Settings, rows: int, cost: DecoderCost, weights: int, number_bytes: int, peaks: Mapping[str, Peak],
    prefill: list[float], step: list[float], most: int,
) -> Measured:  # fmt: skip
    prefill_time, token_time = Spread.of(prefill), Spread.of(step)
    length, new = settings.prompt_length, settings.new_tokens
    context = length + (new + 1) / 2  # mean of length + 1 ... length + new
    prefill_flops, step_flops = cost.prefill_flops(rows, length), cost.step_flops(rows, context)
    step_bytes = weights + cost.cache_bytes(rows, context, number_bytes)
    flops, bandwidth = peaks["flops"].value, peaks["bandwidth"].value
    return Measured(
        batch_size=rows,
        prefill_seconds=prefill_time,
        token_seconds=token_time,
        prefill_tokens_per_second=rows * length / prefill_time.median,
        decode_tokens_per_second=rows / token_time.median,
        prefill_flops=prefill_flops,
        step_flops=step_flops,
        step_bytes=step_bytes,
        cache_bytes=cost.cache_bytes(rows, length + new, number_bytes),
        prefill_utilisation=prefill_flops / prefill_time.median / flops,
        decode_utilisation=step_flops / token_time.median / flops,
        bandwidth_utilisation=step_bytes / token_time.median / bandwidth,
        peak_memory=most,
    )


def cost_of(loaded: Loaded) -> DecoderCost:
    """Count what a loaded model, its adapter included, has to compute."""
    from paddlesft.models.decoders import decoder_of

    model, adapter, prefix = loaded.model, 0, 0
    if isinstance(model, paddle.nn.Layer):
        adapter = sum(int(p.size) for name, p in model.named_parameters() if "lora_" in name and len(p.shape) == 2)
        prefix = decoder_of(model).prefix_length
    elif None in model.prefixes:
        prefix = model.prefixes[None].shape[2]
    return decoder_cost(model.config.to_dict(), prefix, adapter)


def number_type(loaded: Loaded) -> str:
    """Return the type that a model computes with and that its cache has."""
    model = loaded.model
    return str(model.config.dtype) if isinstance(model, paddle.nn.Layer) else model.cache_shape.dtype


def weight_bytes(loaded: Loaded) -> int:
    """Return the bytes of a model's tensors, shared ones counted once; of a graph, those of its files."""
    if isinstance(loaded.model, paddle.nn.Layer):
        tensors = without_second_names(loaded.model).values()
        return sum(int(np.prod(tensor.shape)) * tensor.element_size() for tensor in tensors)
    record = read_record(loaded.directory)
    stems = {Path(name).name.partition(".")[0] for name in (record.program, record.weights) if name}
    return sum(
        path.stat().st_size
        for path in loaded.directory.iterdir()
        if path.is_file() and path.name.partition(".")[0] in stems
    )


def model_facts(loaded: Loaded, cost: DecoderCost, weights: int) -> dict[str, Any]:
    """Return what was measured, in plain values."""
    route, formats = "eager", loaded.base.formats
    if holds_graph(loaded.directory):
        record = read_record(loaded.directory)
        route, formats = f"{record.format} graph", record.formats
    return {
        "directory": str(loaded.directory),
        "adapter": None if loaded.adapter is None else str(loaded.adapter),
        "adapter_kind": loaded.adapter_kind,
        "route": route,
        "dtype": number_type(loaded),
        "formats": formats or "",
        "matrix_parameters": cost.layer_parameters + cost.head_parameters,
        "flops_per_token": 2 * (cost.layer_parameters + cost.head_parameters),
        "weight_bytes": weights,
    }


def machine_facts() -> dict[str, Any]:
    """Return what tells machines apart."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    device = paddle.get_device()
    facts = {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": threads_here(),
        "device": device,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 2)
    if not device.startswith("cpu"):
        facts["card"] = paddle.device.cuda.get_device_name()
        facts["cuda"] = paddle.version.cuda()
    return facts


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute."""
    found = tool_versions()
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["onnxruntime"] = metadata.version("onnxruntime")
    return found


class Memory:
    """Bytes that this process holds above those it held when this was made; on a GPU, bytes allocated there."""

    def __init__(self) -> None:
        self._on_gpu = not paddle.get_device().startswith("cpu")
        self._before = 0
        self.start()
        self._before = self.now()

    def now(self) -> int:
        """Bytes held now; the most held until now where the system does not say it."""
        if self._on_gpu:
            return int(paddle.device.cuda.memory_allocated()) - self._before
        return (_status("VmRSS") or _most_ever()) - self._before

    def start(self) -> None:
        """Forget what was held before; systems other than Linux do not forget."""
        if self._on_gpu:
            paddle.device.cuda.reset_max_memory_allocated()
            return
        gc.collect()
        give_back()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def most(self) -> int:
        """The most bytes held since ``start``."""
        if self._on_gpu:
            return int(paddle.device.cuda.max_memory_allocated()) - self._before
        return (_status("VmHWM") or _most_ever()) - self._before


def _status(field: str) -> int:
    """Return a size of this process in bytes, 0 where there is no such file."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="ascii", errors="replace").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _most_ever() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
