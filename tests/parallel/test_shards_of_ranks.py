"""What real tensor-parallel ranks of PaddleNLP save is merged, and computes what the ranks together computed.

Two ranks, started once for all families: each loads its part of the model (cut by ``split_shards``), computes logits
and saves its part; the merged model, LoRA adapter and prefix are compared with these logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints.merge_shards import merge_shards
from paddlesft.checkpoints.split_shards import split_shards
from paddlesft.checkpoints.verify import logits_of
from paddlesft.models import load_model
from paddlesft.models.families import FAMILIES
from paddlesft.tuning.lora import load_lora
from paddlesft.tuning.prefix import load_prefix
from tests.checkpoints.shards import change, write_even_family
from tests.parallel.ranks import launch_well

pytestmark = pytest.mark.slow
PROMPTS = [np.random.default_rng(seed).integers(5, 600, size).tolist() for seed, size in enumerate((7, 19))]
NAMES = [family.name for family in FAMILIES if family.tensor_parallel]
# PaddleNLP itself fails: it makes the prefix of a ChatGLM2 whole, and its tensor-parallel keys and values in parts.
NO_PREFIX = {"chatglm_v2"}
CASES = [(name, method) for name in NAMES for method in ("full", "lora", "prefix")
         if not (method == "prefix" and name in NO_PREFIX)]  # fmt: skip


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family name -> directory of its tiny model with a vocabulary that 8 divides."""
    root = tmp_path_factory.mktemp("even")
    return cache(lambda name: write_even_family(name, root / name))


@pytest.fixture(scope="module")
def saved(even: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two ranks have saved, of all cases."""
    root = tmp_path_factory.mktemp("ranks")
    for name in NAMES:
        ending = "safetensors" if name == "llama" else "pdparams"
        split_shards(even(name), root / f"{name}-split", tensor_parallel_degree=2, ending=ending)
    jobs = [
        {"name": f"{name}-{method}", "model": str(root / f"{name}-split"), "output": str(root), "prompts": PROMPTS,
         "method": method}
        for name, method in CASES
    ]  # fmt: skip
    (root / "jobs.json").write_text(json.dumps(jobs))
    launch_well(2, "save_shards.py", root / "jobs.json", logs=root / "logs", seconds=500)
    return root


def ranks_logits(saved: Path, name: str, vocabulary: int) -> list[np.ndarray]:
    """The logits of both ranks; each computed its half of the vocabulary, or all."""
    error = saved / f"{name}.error"
    assert not error.is_file(), error.read_text()
    parts = [np.load(saved / f"{name}.logits_{rank}.npz") for rank in (0, 1)]
    rows = [[part[f"arr_{i}"] for part in parts] for i in range(len(PROMPTS))]
    return [row[0] if row[0].shape[-1] == vocabulary else np.concatenate(row, -1) for row in rows]


def difference(even: Path, merged: Path, method: str, wanted: Callable[[int], list[np.ndarray]]) -> float:
    """The largest difference of logits between a merged model or adapter and the ranks."""
    model = load_model(merged if method == "full" else even)
    if method != "full":
        model = {"lora": load_lora, "prefix": load_prefix}[method](model, merged)
    found = logits_of(model, PROMPTS)
    return max(float(np.abs(a - b).max()) for a, b in zip(found, wanted(found[0].shape[-1])))


@pytest.mark.parametrize(("name", "method"), CASES)
def test_merged_parts_compute_what_the_ranks_did(
    name: str, method: str, saved: Path, even: Callable[[str], Path], tmp_path: Path
) -> None:
    case = f"{name}-{method}"
    for file in even(name).glob("*"):
        if "token" in file.name or file.suffix in (".model", ".txt", ".tiktoken"):
            (saved / case / file.name).write_bytes(file.read_bytes())
    report = merge_shards(saved / case, tmp_path / "merged", base=even(name))
    assert report.files == 2 and report.joined > 0
    wanted = lambda vocabulary: ranks_logits(saved, case, vocabulary)  # noqa: E731
    assert difference(even(name), tmp_path / "merged", method, wanted) < 1e-4
    if method != "full":  # the adapter does something: without it the logits are far away
        plain = logits_of(load_model(even(name)), PROMPTS)
        assert max(np.abs(a - b).max() for a, b in zip(plain, wanted(plain[0].shape[-1]))) > 0.1


def test_joining_in_the_order_of_ranks_would_be_wrong(saved: Path, even: Callable[[str], Path], tmp_path: Path) -> None:
    """PaddleNLP joins every B so; Qwen's query, key and value are one matrix, each divided by itself."""
    merge_shards(saved / "qwen-lora", tmp_path / "merged", base=even("qwen"))
    columns = np.arange(3 * 64).reshape(3, 2, 32).transpose(1, 0, 2).reshape(-1)  # [q1 k1 v1 q2 k2 v2]
    name = "qwen.h.0.attn.c_attn.lora_B"
    change(tmp_path / "merged/lora_model_state.pdparams", **{name: lambda b: b[:, columns]})
    wanted = lambda vocabulary: ranks_logits(saved, "qwen-lora", vocabulary)  # noqa: E731
    assert difference(even("qwen"), tmp_path / "merged", "lora", wanted) > 0.1
