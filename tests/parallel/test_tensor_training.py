"""Full fine-tuning of every family, its layers divided among two ranks: all it gives is that of one process.

Each family trains twice: row by row, with replies generated to evaluate it, and packed, with layers computed again and
with its tokens divided too where it can. Momentum in place of AdamW shows wrong factors in gradients, and AdamW would
blow up rounding: so the weights agree in all digits that float32 has for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddlesft.models.families import FAMILIES, family_named
from paddlesft.training.run_log import read_log
from tests.checkpoints.shards import write_even_family
from tests.parallel.ranks import PROGRAMS, REPO, launch_well
from tests.tiny_families import write_tiny_family

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 2e-6
STEPS = 4
NAMES = [family.name for family in FAMILIES if family.tensor_parallel]
# name -> family, what its config says; beside each family's tiny model
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-odd": ("llama", {"vocab_size": 1025}),  # embedding and head stay whole
    "gemma-odd": ("gemma", {"vocab_size": 1025}),
    "llama-fused": ("llama", {"fuse_attention_qkv": True, "fuse_attention_ffn": True}),
    "gpt-fused": ("gpt", {"fuse_attention_qkv": True}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "opt-untied": ("opt", {"seed": 8}),  # with 7 the input of a ReLU comes within 1e-7 of its kink
    "opt-narrow": ("opt", {"word_embed_proj_dim": 32, "normalize_before": False}),
    "chatglm_v2-biased": ("chatglm_v2", {"add_bias_linear": True}),
}
KINDS = {
    "rows": ["eval_with_do_generation=true", "save_generation_output=true", "max_new_tokens=6"],
    "packed": ["packing=true", "recompute=true"],
}
MODELS = {name: family_named(name) for name in NAMES} | {
    name: family_named(family) for name, (family, _) in VARIANTS.items()
}
CASES = [(name, kind) for name in MODELS for kind in KINDS]
TWO_RANKS = ["tensor_parallel_degree=2"]

BROKEN = ("tensor parallel gradient", "gradients of tokens")  # see programs/own_training.py


def degrees(name: str, kind: str) -> list[str]:
    shares_tokens = kind == "packed" and MODELS[name].sequence_parallel
    return [*TWO_RANKS, "sequence_parallel=true"] if shares_tokens else TWO_RANKS


def job(name: str, kind: str, models: Path, root: Path, more: list[str], broken: str = "") -> dict[str, Any]:
    keys = [f"model_name_or_path={models / name}", f"dataset_name_or_path={models / 'data'}"]
    title = f"{name}-{kind}{' without ' * bool(broken)}{broken}"
    keys += [f"output_dir={root / title}", "lora=false", "max_length=96", "src_length=64"]
    keys += ["save_strategy=no", f"max_steps={STEPS}", "logging_steps=1", "evaluation_strategy=steps"]
    keys += [
        "max_grad_norm=0.5",
        "device=cpu",
        "fp16_opt_level=O1",
        "per_device_train_batch_size=2",
        "gradient_accumulation_steps=2",
    ]
    keys += [*KINDS[kind], *more]
    return {"name": title, "config": keys, "divided": bool(more), "momentum": 0.1, "broken": broken or None}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of tiny models, and ``data``."""
    root = tmp_path_factory.mktemp("models")
    for name in NAMES:
        write_even_family(name, root / name)
    for name, (family, values) in VARIANTS.items():
        write = write_tiny_family if name in ("opt-untied", "llama-odd", "gemma-odd") else write_even_family
        write(family, root / name, **values)
    data = root / "data"
    data.mkdir()
    for name, count in (("train", 11), ("dev", 3)):
        rows = [{"src": f"Say {'very ' * (i % 4)}{i}", "tgt": f"{i} " * (1 + i % 3)} for i in range(count)]
        (data / f"{name}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def runs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Outputs of all jobs of one process, and of two ranks."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for root in (one, two):
        jobs = [job(*case, models, root, degrees(*case) if root is two else []) for case in CASES]
        if root is two:
            jobs += [job("llama", "packed", models, root, degrees("llama", "packed"), broken) for broken in BROKEN]
        (root / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, PROGRAMS / "own_training.py", one / "jobs.json"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    launch_well(2, "own_training.py", two / "jobs.json", logs=two / "logs", seconds=400)
    return one, two


def curve(out: Path) -> list[tuple[Any, ...]]:
    """Step, kind, accuracy and loss of each record."""
    return [
        (r["step"], r["kind"], r.get("eval_accuracy"), r.get("eval_bleu4"), r.get("loss", r.get("eval_loss")))
        for r in read_log(out)
    ]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_divided_layers_train_as_whole_ones(runs: tuple[Path, Path], name: str, kind: str) -> None:
    alone, together = (curve(root / f"{name}-{kind}") for root in runs)
    assert [point[:-1] for point in alone] == [point[:-1] for point in together]
    assert sum(point[1] == "train" for point in alone) == STEPS and any(point[1] == "eval" for point in alone)
    assert alone[0][-1] - alone[STEPS - 1][-1] > 0.05  # it learns
    assert max(abs(a[-1] - b[-1]) for a, b in zip(alone, together)) < TOLERANCE


@pytest.mark.parametrize("sum_left_out", BROKEN)
def test_a_sum_that_is_left_out_is_noticed(runs: tuple[Path, Path], sum_left_out: str) -> None:
    alone, together = curve(runs[0] / "llama-packed"), curve(runs[1] / f"llama-packed without {sum_left_out}")
    assert max(abs(a[-1] - b[-1]) for a, b in zip(alone, together)) > TOLERANCE


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_result_is_the_model_of_one_process(runs: tuple[Path, Path], name: str, kind: str) -> None:
    alone, together = (root / f"{name}-{kind}" for root in runs)
    weights, found = load_file(alone / "model.safetensors"), load_file(together / "model.safetensors")
    assert {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in found.items()}
    for key, value in weights.items():
        np.testing.assert_allclose(found[key], value, atol=WEIGHT_TOLERANCE, err_msg=key)
    assert json.loads((together / "config.json").read_text()) == json.loads((alone / "config.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_ranks_write_the_replies_of_one_process_together(runs: tuple[Path, Path], name: str) -> None:
    alone, together = (root / f"{name}-rows" / "generated_output.json" for root in runs)
    assert len(alone.read_text(encoding="utf-8").splitlines()) == 3
    assert together.read_text(encoding="utf-8") == alone.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_the_whole_model_are_announced(runs: tuple[Path, Path], models: Path, name: str) -> None:
    plans = [json.loads((root / f"{name}-rows.plan.json").read_text(encoding="utf-8")) for root in runs]
    counts = [(plan["trained_parameters"], plan["parameters"]) for plan in plans]
    assert counts[0] == counts[1]
