"""The project's own run on CPU ranks: full fine-tuning and LoRA have the losses of one process."""

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
from tests.parallel.ranks import PROGRAMS, REPO, launch_well
from tests.parallel.test_gloo_training import TP, sharded

TOLERANCE = 1e-4
ROWS = 13  # the last step of an epoch has one row: none for the second of two readers
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2": (2, {}),
    "stage1": (2, sharded(1)),
    "tp2": (1, {TP: 2}),
}
METHODS = {"full": ["lora=false", "learning_rate=1e-3"], "lora": ["lora=true", "learning_rate=1e-2"]}

CASES = [("full", "dp2"), ("lora", "dp2"), ("full", "stage1"), ("lora", "stage1"), ("full", "tp2")]


def job(method: str, layout: str, readers: int, model: Path, data: Path, root: Path) -> dict[str, Any]:
    keys = [f"model_name_or_path={model}", f"dataset_name_or_path={data}", f"output_dir={root / f'{method}-{layout}'}"]
    keys += ["max_length=64", "src_length=32", "per_device_train_batch_size=2", "num_train_epochs=3", "logging_steps=1"]
    keys += ["save_strategy=no", "evaluation_strategy=epoch", "max_grad_norm=0.5", "device=cpu", "fp16_opt_level=O1"]
    keys += [f"gradient_accumulation_steps={2 // readers}", *METHODS[method]]
    degrees = LAYOUTS[layout][1] if layout in LAYOUTS else {}
    return {"config": keys + [f"{key}={value}" for key, value in degrees.items()], "layout": degrees}


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the outputs of all runs, ``METHOD-LAYOUT``."""
    root = tmp_path_factory.mktemp("runs")
    data = root / "data"
    data.mkdir()
    for name, count in (("train", ROWS), ("dev", 5)):
        rows = [{"src": f"Say {'very ' * (i % 4)}{i}", "tgt": f"{i} " * (1 + i % 3)} for i in range(count)]
        (data / f"{name}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    one = [job(method, "one", 1, tiny_llama, data, root) for method in METHODS]
    two = [job(method, layout, LAYOUTS[layout][0], tiny_llama, data, root) for method, layout in CASES]
    for name, jobs in (("one", one), ("two", two)):
        (root / f"{name}.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, PROGRAMS / "own_training.py", root / "one.json"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    launch_well(2, "own_training.py", root / "two.json", logs=root / "logs", seconds=300)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_is_the_whole_model(runs: Path, layout: str) -> None:
    alone, together = (load_file(runs / f"full-{name}" / "model.safetensors") for name in ("one", layout))
    assert {name: array.shape for name, array in alone.items()} == {name: a.shape for name, a in together.items()}
    for name, array in alone.items():  # Adam enlarges rounding: 12 steps of at most 1e-3 each
        np.testing.assert_allclose(together[name], array, atol=1e-3, err_msg=name)
    config = json.loads((runs / f"full-{layout}" / "config.json").read_text(encoding="utf-8"))
    assert config.get("tensor_parallel_degree", 1) in (-1, 1) and config.get("tensor_parallel_rank", 0) == 0


def curve(out: Path) -> list[tuple[int, str, float]]:
    return [(r["step"], r["kind"], r.get("loss", r.get("eval_loss"))) for r in read_log(out)]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "layout"), CASES)
def test_layout_has_the_losses_of_one_process(runs: Path, method: str, layout: str) -> None:
    alone, together = curve(runs / f"{method}-one"), curve(runs / f"{method}-{layout}")
    assert [point[:2] for point in alone] == [point[:2] for point in together]
    assert len(alone) == 15  # 12 steps, 3 evaluations
    assert alone[0][2] - alone[-1][2] > 0.05  # it learns
    assert max(abs(a[2] - b[2]) for a, b in zip(alone, together)) < TOLERANCE
