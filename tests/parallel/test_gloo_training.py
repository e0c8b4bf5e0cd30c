"""PaddleNLP's models and Trainer on CPU ranks: every layout has the losses of one process.

The weights, the rows and the global batches are the same; gradients are clipped; everything is float32. AdamW divides
by the size of the gradients and so hides wrong factors: the jobs with momentum show them. ``test_own_training.py`` has
more ranks, LoRA and packed rows: all layouts of the project's own run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.ranks import PROGRAMS, REPO, launch_well

TOLERANCE = 1e-4
STEPS = 6
ROWS_PER_STEP = 8
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
    "dtype": "float32",
}

TP, PP, SP = "tensor_parallel_degree", "pipeline_parallel_degree", "sequence_parallel"


def sharded(stage: int, degree: int = 2) -> dict[str, Any]:
    return {"sharding": f"stage{stage}", "sharding_parallel_degree": degree}


# name -> (number of ranks, how many of them read different rows, what TrainingArguments are told)
LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "one": (1, 1, {}),
    "dp2": (2, 2, {}),
    "stage1": (2, 2, sharded(1)),
    "stage2": (2, 2, sharded(2)),
    "stage3": (2, 2, sharded(3)),
    "tp2": (2, 1, {TP: 2}),
    "tp2 sp": (2, 1, {TP: 2, SP: True}),
    "pp2": (2, 1, {PP: 2}),
    "tp2 pp2": (4, 1, {TP: 2, PP: 2}),
    "pp4": (4, 1, {PP: 4}),
}
KINDS = ("llama", "llama momentum")
FEWER = {"llama momentum": [name for name, (ranks, *_) in LAYOUTS.items() if ranks == 2]}
CASES = [
    (kind, layout) for kind in KINDS for layout in LAYOUTS if layout != "one" and layout in FEWER.get(kind, LAYOUTS)
]
BROKEN = {"tp2": "tensor parallel gradient", "dp2": "data parallel gradient"}


def job(kind: str, layout: str, models: Path, output: Path, **options: Any) -> dict[str, Any]:
    _, readers, arguments = LAYOUTS[layout]
    rows = ROWS_PER_STEP // readers
    parts = min(4, rows) if arguments.get(PP) else 1  # a pipeline wants several micro batches
    family = kind.split()[0]
    momentum = "momentum" in kind
    return {
        "name": f"{kind} {layout}",
        "model": str(models / family),
        "momentum": momentum,
        "output": str(output),
        "arguments": {
            "max_steps": STEPS,
            "learning_rate": 0.5 if momentum else 5e-3,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.3,
            "per_device_train_batch_size": rows // parts,
            "gradient_accumulation_steps": parts,
            **arguments,
        },
        **options,
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory ``llama``."""
    import paddle
    from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("models")
    paddle.seed(7)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(str(root / "llama"), safe_serialization=True)
    return root


@pytest.fixture(scope="module")
def losses(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[float]]:
    """(kind, layout) -> the losses; all jobs of as many ranks run in one launch, at the first question."""

    failed: dict[int, BaseException] = {}

    def run(ranks: int) -> Path:
        if ranks in failed:  # once is enough: a launch takes half a minute
            raise failed[ranks]
        try:
            return start(ranks)
        except BaseException as error:
            failed[ranks] = error
            raise

    @cache
    def start(ranks: int) -> Path:
        output = tmp_path_factory.mktemp(f"ranks{ranks}")
        cases = [(kind, "one") for kind in KINDS] if ranks == 1 else CASES
        jobs = [job(kind, layout, models, output) for kind, layout in cases if LAYOUTS[layout][0] == ranks]
        if ranks == 2:
            jobs += [
                job("llama", layout, models, output, name=f"broken {layout}", broken=what)
                for layout, what in BROKEN.items()
            ]
        (output / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        if ranks > 1:
            launch_well(ranks, "hybrid_training.py", output / "jobs.json", logs=output / "logs", seconds=400)
        else:
            command = [sys.executable, PROGRAMS / "hybrid_training.py", output / "jobs.json"]
            environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr[-4000:]
        return output

    def of(kind: str, layout: str) -> list[float]:
        file = run(LAYOUTS[layout][0]) / f"{kind} {layout}.json"
        return json.loads(file.read_text(encoding="utf-8"))

    return of


def difference(first: list[float], second: list[float]) -> float:
    assert len(first) == len(second) == STEPS
    return max(abs(a - b) for a, b in zip(first, second))


def marked(case: tuple[str, str]) -> Any:
    return pytest.param(*case, id="-".join(case), marks=[pytest.mark.slow] if LAYOUTS[case[1]][0] > 2 else [])


@pytest.mark.parametrize(("kind", "layout"), [marked(case) for case in CASES])
def test_layout_has_the_losses_of_one_process(losses: Callable, kind: str, layout: str) -> None:
    assert difference(losses(kind, "one"), losses(kind, layout)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_learns(losses: Callable, kind: str) -> None:
    alone = losses(kind, "one")
    assert alone[-1] < alone[0] - 0.05  # else equal losses would say little


@pytest.mark.parametrize("layout", BROKEN)
def test_sum_that_is_left_out_shows(losses: Callable, layout: str) -> None:
    assert difference(losses("llama", "one"), losses("broken", layout)) > 10 * TOLERANCE
