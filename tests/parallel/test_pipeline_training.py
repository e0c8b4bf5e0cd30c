"""The project's own run in pipelines, with every family that has a pipeline class: losses and results of one process.

Each case is one run of its own and one in a single process, from the same model and rows. Momentum shows wrong factors
in gradients and norms, which AdamW would hide; AdamW shows which weights decay.
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

from paddlesft.training.run_log import read_log
from tests.checkpoints.shards import write_even_family
from tests.parallel.ranks import PROGRAMS, REPO, launch_well
from tests.parallel.test_gloo_training import PP, SP, TP

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
ROWS, EVAL_ROWS = 29, 5
GLOBAL_BATCH = 8
VIRTUAL = {PP: 4, "virtual_pp_degree": 2, "per_device_train_batch_size": 1}
SEQUENCE = {PP: 2, TP: 2, SP: True}
MOMENTUM = {"full": 0.1, "lora": 1.0}
METHODS = {"full": {"lora": "false", "learning_rate": 1e-3}, "lora": {"lora": "true", "learning_rate": 1e-2}}
SIZES = {  # tied heads: always in gemma and gpt; layers that two stages share unequally: llama
    "llama": {"num_hidden_layers": 3},
    "tied": {"num_hidden_layers": 4, "tie_word_embeddings": True},
    "qwen2": {"num_hidden_layers": 4},
    "gemma": {"num_hidden_layers": 4},
    "gpt": {"num_hidden_layers": 8},
    "qwen": {"num_hidden_layers": 4},
    "chatglm_v2": {"num_hidden_layers": 4},
}
UPPER_HALF = {"lora_target_modules": ".*layers[.][4567][.].*"}  # the first chunk of each stage has nothing to train
RECOMPUTE = {"recompute": "true"}
KEPT = RECOMPUTE | {"no_recompute_layers": "[1]"}
# ranks -> model, method, more (packed rows, momentum), layout, other keys
CASES: dict[int, list[tuple[str, str, str, dict[str, Any], dict[str, Any]]]] = {
    2: [
        ("llama", "full", "", {PP: 2}, KEPT),
        ("llama", "lora", "packed", {PP: 2}, {}),
        ("tied", "full", "momentum", {PP: 2}, {}),
        ("qwen2", "full", "packed", {PP: 2}, {}),
        ("qwen2", "lora", "momentum", {PP: 2}, KEPT),
        ("gemma", "full", "momentum packed", {PP: 2}, {}),
        ("gemma", "lora", "", {PP: 2}, KEPT),
        ("gpt", "full", "", {PP: 2}, {}),
        ("gpt", "lora", "packed", {PP: 2}, KEPT),
        ("qwen", "full", "packed", {PP: 2}, {}),
        ("qwen", "lora", "momentum", {PP: 2}, {}),
        ("chatglm_v2", "full", "", {PP: 2}, RECOMPUTE),
        ("chatglm_v2", "lora", "packed", {PP: 2}, {}),
    ],
    4: [
        ("gpt", "full", "momentum", VIRTUAL, {}),
        ("gpt", "lora", "", VIRTUAL, UPPER_HALF),
        ("gpt", "full", "momentum packed", SEQUENCE, {}),
        ("gemma", "lora", "packed", SEQUENCE, {}),
        ("qwen", "full", "momentum", SEQUENCE, {}),
        ("chatglm_v2", "lora", "momentum packed", SEQUENCE, {}),
    ],
}
TIED = 2  # which of the cases on two ranks has a head that is the embedding, and momentum
NAMES = [
    (ranks, number, f"{model} {method} {more} on {ranks}")
    for ranks, cases in CASES.items()
    for number, (model, method, more, *_) in enumerate(cases)
]


def job(root: Path, name: str, case: tuple[Any, ...], divided: bool, broken: str | None = None) -> dict[str, Any]:
    model, method, more, layout, others = case
    keys = {
        "model_name_or_path": root / model,
        "dataset_name_or_path": root / "data",
        "output_dir": root / name,
        "max_length": 48,
        "src_length": 32,
        "num_train_epochs": 6 if "packed" in more else 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "evaluation_strategy": "epoch",
        "max_grad_norm": 0.4,
        "weight_decay": 0.3,
        "device": "cpu",
        "packing": "true" if "packed" in more else "false",
        "per_device_train_batch_size": 2,
        **METHODS[method],
        **others,
        **(layout if divided else {}),
    }
    keys["gradient_accumulation_steps"] = GLOBAL_BATCH // keys["per_device_train_batch_size"]
    momentum = MOMENTUM[method] if "momentum" in more else None
    lines = [f"{key}={value}" for key, value in keys.items()]
    return {"name": name, "config": lines, "divided": divided, "momentum": momentum, "broken": broken}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the outputs of all runs: NUMBER-RANKS, and NUMBER-RANKS-alone."""
    root = tmp_path_factory.mktemp("pipelines")
    for name, sizes in SIZES.items():
        write_even_family("llama" if name == "tied" else name, root / name, **sizes)
    (root / "data").mkdir()
    for name, count in (("train", ROWS), ("dev", EVAL_ROWS)):
        rows = [{"src": f"Say {'very ' * (i % 4)}{i}", "tgt": f"{i} " * (1 + i % 3)} for i in range(count)]
        (root / "data" / f"{name}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    alone = [job(root, f"{i}-{ranks}-alone", case, False) for ranks in CASES for i, case in enumerate(CASES[ranks])]
    (root / "alone.json").write_text(json.dumps(alone), encoding="utf-8")
    command = [sys.executable, PROGRAMS / "own_training.py", root / "alone.json"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for ranks, cases in CASES.items():
        jobs = [job(root, f"{i}-{ranks}", case, True) for i, case in enumerate(cases)]
        if ranks == 2:
            jobs.append(job(root, "broken", cases[TIED], True, broken="norm of shared matrices"))
        (root / f"{ranks}.json").write_text(json.dumps(jobs), encoding="utf-8")
        launch_well(ranks, "own_training.py", root / f"{ranks}.json", logs=root / f"logs-{ranks}", seconds=400)
    return root


def curve(out: Path) -> list[tuple[int, str, float]]:
    return [(r["step"], r["kind"], r.get("loss", r.get("eval_loss"))) for r in read_log(out)]


@pytest.mark.parametrize(("ranks", "number"), [case[:2] for case in NAMES], ids=[case[2] for case in NAMES])
def test_pipeline_has_the_losses_of_one_process(runs: Path, ranks: int, number: int) -> None:
    alone, together = curve(runs / f"{number}-{ranks}-alone"), curve(runs / f"{number}-{ranks}")
    assert [point[:2] for point in alone] == [point[:2] for point in together]
    assert len([point for point in alone if point[1] == "train"]) >= 6
    assert alone[0][2] - alone[-1][2] > 0.5  # it learns
    assert max(abs(a[2] - b[2]) for a, b in zip(alone, together)) < TOLERANCE


@pytest.mark.parametrize(
    ("ranks", "number"),
    [(ranks, i) for ranks, i, name in NAMES if "full momentum" in name],
    ids=[name for *_, name in NAMES if "full momentum" in name],
)
def test_result_is_the_whole_model(runs: Path, ranks: int, number: int) -> None:
    alone, together = (
        load_file(runs / name / "model.safetensors") for name in (f"{number}-{ranks}-alone", f"{number}-{ranks}")
    )
    assert alone.keys() == together.keys()
    for name, array in alone.items():
        np.testing.assert_allclose(together[name], array, atol=1e-5, err_msg=name)


def test_comparison_notices_a_matrix_that_counts_twice_in_the_norm(runs: Path) -> None:
    alone, broken = curve(runs / f"{TIED}-2-alone"), curve(runs / "broken")
    assert max(abs(a[2] - b[2]) for a, b in zip(alone, broken)) > 10 * TOLERANCE


def test_evaluations_count_the_same_tokens(runs: Path) -> None:
    alone, together = (json.loads((runs / name / "eval_results.json").read_text()) for name in ("0-2-alone", "0-2"))
    assert alone["eval_tokens"] == together["eval_tokens"] > 0
    assert alone["eval_accuracy"] == together["eval_accuracy"]
