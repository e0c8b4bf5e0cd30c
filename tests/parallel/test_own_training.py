"""The project's own run in every layout: losses, evaluations and the result are those of one process.

Same rows, same global batches, gradients clipped, weight decay, float32. Steps have several micro-batches of unequal
lengths, and the last of an epoch is smaller: one of two readers has fewer micro-batches than the other, or none.
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

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from paddlesft.training.run_log import read_log
from tests.parallel.ranks import PROGRAMS, REPO, launch_well
from tests.parallel.test_gloo_training import LAYOUTS as SMALL_LAYOUTS
from tests.parallel.test_gloo_training import PP, TP, sharded
from tests.tiny_families import write_tiny_family

TOLERANCE = 1e-4
ROWS, EVAL_ROWS = 29, 5
GLOBAL_BATCH, MICRO_BATCH = 8, 2

# name -> (number of ranks, how many of them read different rows, keys)
LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    **{name: SMALL_LAYOUTS[name] for name in SMALL_LAYOUTS if name != "pp4"},
    "tp2 dp2": (4, 2, {TP: 2}),
    "tp2 stage1": (4, 2, {TP: 2, **sharded(1)}),
    "tp2 stage2": (4, 2, {TP: 2, **sharded(2)}),
    "pp2 stage1": (4, 2, {PP: 2, **sharded(1)}),
    "pp2 dp2": (4, 2, {PP: 2}),
    "stage1 dp2": (4, 4, sharded(1)),
    "stage2 dp2": (4, 4, sharded(2)),
    "stage3 dp2": (4, 4, sharded(3)),
    "tp2 pp2 dp2": (8, 2, {TP: 2, PP: 2}),
    "tp2 pp2 stage1": (8, 2, {TP: 2, PP: 2, **sharded(1)}),
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"lora": "false", "learning_rate": 1e-3},
    "lora": {"lora": "true", "learning_rate": 1e-2},
    "prefix": {"lora": "false", "prefix_tuning": "true", "num_prefix_tokens": 4, "learning_rate": 5e-2},
}
FAMILIES: dict[str, dict[str, Any]] = {  # the others that have pipelines: test_pipeline_training.py
    "llama": {"num_hidden_layers": 3},  # grouped queries; an odd number of layers for two stages
    "qwen2": {"tie_word_embeddings": True},
}
ON_TWO = [name for name, (ranks, *_) in LAYOUTS.items() if ranks == 2]
EVERYWHERE = [name for name in LAYOUTS if name != "one"]
# "FAMILY METHOD MORE" -> layouts. More: packed rows; momentum, since AdamW divides by the size of the gradients and
# hides wrong factors; bad, a step that is not a number and must change nothing; nf4, over a quantized base. All
# combinations of degrees are run once; what a method or kind adds is proved on each degree and on a few combinations.
KINDS: dict[str, list[str]] = {
    "llama full": EVERYWHERE,
    "llama lora packed": [*ON_TWO, "tp2 pp2", "tp2 stage2", "stage3 dp2", "tp2 pp2 dp2"],
    "llama full packed": ["stage3", "tp2 sp", "pp2", "tp2 stage2"],
    "llama lora": ["stage3", "tp2"],
    "llama lora nf4": ["dp2", "stage1", "stage2"],
    "llama full momentum": [*ON_TWO, "tp2 pp2", "tp2 stage2", "stage2 dp2"],
    "llama full bad": [*ON_TWO, "tp2 stage2"],
    "llama lora bad": ["stage3"],
    "llama prefix": [*ON_TWO, "tp2 pp2"],
    "qwen2 full": ["stage3", "tp2", "tp2 pp2"],
    "qwen2 lora packed": ["stage3", "tp2 sp", "pp2"],
    "qwen2 lora": ["pp2"],
}
FAST = ("llama full", "llama lora packed", "llama lora nf4")  # kinds that every run of the tests sees, on two ranks
CASES = [(kind, layout) for kind, layouts in KINDS.items() for layout in layouts]
BROKEN = {"tp2": "tensor parallel gradient", "stage1": "gradients of sharding", "stage2": "gradients of sharding"}
BAD_STEP = 3


def epochs(kind: str) -> int:
    """How often a kind's rows are trained; packed, they are fewer."""
    return 3 if "packed" in kind else 2


def job(kind: str, layout: str, models: Path, root: Path, name: str | None = None, **options: Any) -> dict[str, Any]:
    _, readers, degrees = LAYOUTS[layout]
    family, method, *more = kind.split()
    name = name or f"{kind} {layout}"
    keys = {
        "model_name_or_path": models / family,
        "dataset_name_or_path": models / "data",
        "output_dir": root / name,
        "max_length": 64,
        "src_length": 32,
        "logging_steps": 1,
        "save_strategy": "no",
        "evaluation_strategy": "epoch",
        "max_grad_norm": 0.5,
        "weight_decay": 0.3,
        "num_train_epochs": epochs(kind),
        "device": "cpu",
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": GLOBAL_BATCH // MICRO_BATCH // readers,
        **METHODS[method],
        **degrees,
    }
    if "packed" in more:
        keys |= {"packing": "true", "max_length": 48}
    if "momentum" in more:
        keys["max_grad_norm"] = 5.0  # clips some steps and leaves others
        options["momentum"] = 0.05
    if "nf4" in more:
        keys |= {"weight_quantize_algo": "nf4", "weight_double_quant": "true"}
    if "bad" in more:
        options["bad_step"] = BAD_STEP
    lines = [f"{key}={value}" for key, value in keys.items()]
    return {"name": name, "config": lines, "divided": bool(degrees), **options}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of tiny models, and ``data``."""
    root = tmp_path_factory.mktemp("models")
    for family, sizes in FAMILIES.items():
        write_tiny_family(family, root / family, **sizes)
    data = root / "data"
    data.mkdir()
    for name, count in (("train", ROWS), ("dev", EVAL_ROWS)):
        rows = [{"src": f"Say {'very ' * (i % 4)}{i}", "tgt": f"{i} " * (1 + i % 3)} for i in range(count)]
        (data / f"{name}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root


def launched_with(kind: str, layout: str) -> tuple[int, bool]:
    """The launch that a case belongs to: number of ranks, and whether it is a quick one."""
    ranks = LAYOUTS[layout][0]
    return ranks, ranks == 1 or (ranks == 2 and kind in FAST)


@pytest.fixture(scope="module")
def output(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(kind, layout) -> output directory; all jobs of a launch run at the first question about one of them."""
    failed: dict[tuple[int, bool], BaseException] = {}

    def run(kind: str, layout: str) -> Path:
        launch = launched_with(kind.removeprefix("broken "), layout)
        if launch in failed:  # once is enough
            raise failed[launch]
        try:
            return start(*launch) / f"{kind} {layout}"
        except BaseException as error:
            failed[launch] = error
            raise

    @cache
    def start(ranks: int, quick: bool) -> Path:
        root = tmp_path_factory.mktemp(f"ranks{ranks}")
        cases = sorted(CASES, key=lambda case: EVERYWHERE.index(case[1]))  # undivided ones first
        cases = [(kind, "one") for kind in KINDS] if ranks == 1 else cases
        jobs = [job(*case, models, root) for case in cases if launched_with(*case) == (ranks, quick)]
        if (ranks, quick) == (2, False):
            kind = "llama full momentum"
            broken = {layout: {"name": f"broken {kind} {layout}", "broken": what} for layout, what in BROKEN.items()}
            jobs += [job(kind, layout, models, root, **options) for layout, options in broken.items()]
        (root / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        if ranks > 1:
            launch_well(ranks, "own_training.py", root / "jobs.json", logs=root / "logs", seconds=400)
        else:
            command = [sys.executable, PROGRAMS / "own_training.py", root / "jobs.json"]
            environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr[-4000:]
        return root

    return run


def curve(out: Path) -> list[tuple[int, str, float]]:
    return [(r["step"], r["kind"], r.get("loss", r.get("eval_loss"))) for r in read_log(out)]


def difference(alone: Path, together: Path) -> float:
    first, second = curve(alone), curve(together)
    assert [point[:2] for point in first] == [point[:2] for point in second]
    return max(abs(a[2] - b[2]) for a, b in zip(first, second))


def weights(out: Path) -> dict[str, np.ndarray]:
    if (out / "model.safetensors").is_file():
        return load_file(out / "model.safetensors")
    (file,) = out.glob("*.pdparams")
    return paddle.load(str(file), return_numpy=True)


def marked(*case: str) -> Any:
    _, quick = launched_with(*case)
    return pytest.param(*case, id="-".join(case), marks=[] if quick else [pytest.mark.slow])


ALL_CASES = [marked(*case) for case in CASES]


@pytest.mark.parametrize(("kind", "layout"), ALL_CASES)
def test_layout_has_the_losses_of_one_process(output: Callable[..., Path], kind: str, layout: str) -> None:
    assert difference(output(kind, "one"), output(kind, layout)) < TOLERANCE


@pytest.mark.parametrize(("kind", "layout"), ALL_CASES)
def test_result_is_that_of_one_process(output: Callable[..., Path], kind: str, layout: str) -> None:
    alone, together = weights(output(kind, "one")), weights(output(kind, layout))
    assert {name: array.shape for name, array in alone.items()} == {name: a.shape for name, a in together.items()}
    for name, array in alone.items():  # where a gradient is nearly zero, AdamW turns rounding into a part of a step
        difference = np.abs(together[name] - array)
        assert difference.mean() < TOLERANCE / 10 and difference.max() < 20 * TOLERANCE, name
    for file in output(kind, "one").glob("*config.json"):
        assert json.loads((output(kind, layout) / file.name).read_text("utf-8")) == json.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_learns(output: Callable[..., Path], kind: str) -> None:
    points = curve(output(kind, "one"))
    assert len([step for step, what, _ in points if what == "train"]) >= 5
    assert len([step for step, what, _ in points if what == "eval"]) == epochs(kind)
    assert points[0][2] - points[-1][2] > (0.1 if "prefix" in kind else 0.5)  # else equal losses would say little


@pytest.mark.slow
@pytest.mark.parametrize("layout", BROKEN)
def test_sum_that_is_left_out_shows(output: Callable[..., Path], layout: str) -> None:
    kind = "llama full momentum"
    assert difference(output(kind, "one"), output(f"broken {kind}", layout)) > 10 * TOLERANCE


@pytest.mark.slow
def test_bad_step_is_said_once(output: Callable[..., Path]) -> None:
    log = (output("llama full bad", "stage2").parent / "logs" / "workerlog.0").read_text(encoding="utf-8")
    jobs = log.count(f"warning: step {BAD_STEP}: the loss is nan; the step changes no weights (1 of 5 in a row")
    assert jobs == len([case for case in CASES if "bad" in case[0] and LAYOUTS[case[1]][0] == 2])
