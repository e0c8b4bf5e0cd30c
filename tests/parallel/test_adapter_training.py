"""Adapters trained in divided layouts: losses, evaluations and the adapter itself are those of one process.

Every family is here, because each divides its matrices in its own way: an adapter that is cut or joined wrongly has the
right shapes, and may have the right losses, but other numbers. Gradients are clipped, and the optimizer is momentum,
whose steps are as large as the gradients: AdamW's would hide factors and enlarge rounding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from paddlesft.models.families import FAMILIES
from paddlesft.models.stored import load_pdparams
from paddlesft.training.run_log import read_log
from tests.checkpoints.shards import write_even_family
from tests.parallel.ranks import PROGRAMS, REPO, launch_well
from tests.parallel.test_gloo_training import PP, SP, TP, sharded

pytestmark = pytest.mark.slow
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 2e-5
STEPS = 5
METHODS = {
    "lora": ["lora=true", "lora_rank=4"],
    "prefix": ["prefix_tuning=true", "num_prefix_tokens=5"],
    "projected": ["prefix_tuning=true", "num_prefix_tokens=5", "prefix_projection=true",
                  "prefix_projection_hidden_size=25"],
}  # fmt: skip
LEARNING_RATE = {"lora": 0.3, "prefix": 3.0, "projected": 1.0}
WEIGHTS = {"lora": "lora_model_state.pdparams"}
# name -> number of ranks, how many of them read different rows, keys
LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "one": (1, 1, {}),
    "tp2": (2, 1, {TP: 2}),
    "tp2 sp": (2, 1, {TP: 2, SP: True}),
    "pp2": (2, 1, {PP: 2}),
    "stage3": (2, 2, sharded(3)),
    "tp2 pp2": (4, 1, {TP: 2, PP: 2}),
    "tp2 sp pp2": (4, 1, {TP: 2, SP: True, PP: 2}),
    "tp2 stage1": (4, 2, {TP: 2, **sharded(1)}),
    "pp2 stage1": (4, 2, {PP: 2, **sharded(1)}),
    "pp2 dp2": (4, 2, {PP: 2}),
}
PACKED, RECOMPUTE, QUICK = "packing=true", "recompute=true", "use_quick_lora=true"
COLUMNS = "lora_target_modules=[q_proj, v_proj, up_proj]"  # whose inputs all ranks have whole


class Case(NamedTuple):
    """A run: which model, which adapter, how it is divided, what else its config says.

    A key ``from`` stands for an adapter that a run in one process has left: training goes on from it.
    """

    family: str
    method: str
    layout: str
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join((*self[:3], *self.more))

    @property
    def alone(self) -> Case:
        """The same in one process."""
        return self._replace(layout="one")


def cases(method: str, layout: str, families: str, *more: str) -> list[Case]:
    return [Case(family, method, layout, more) for family in families.split()]


TENSOR = " ".join(family.name for family in FAMILIES if family.tensor_parallel)
PIPELINE = " ".join(family.name for family in FAMILIES if family.pipe_class)
CASES = [
    *cases("lora", "tp2", TENSOR),
    *cases("prefix", "tp2", TENSOR),
    *cases("lora", "pp2", PIPELINE),
    *cases("prefix", "pp2", PIPELINE),
    *cases("lora", "tp2 sp", "llama gpt chatglm_v2"),
    *cases("prefix", "tp2 sp", "llama gpt chatglm_v2"),
    *cases("projected", "tp2", "llama"),
    *cases("projected", "stage3", "llama"),
    *cases("projected", "pp2", "chatglm_v2", RECOMPUTE),
    *cases("prefix", "pp2", "gpt", RECOMPUTE),
    *cases("prefix", "pp2", "gemma qwen", PACKED),  # whose pipelines hand no positions on
    *cases("lora", "tp2", "llama", QUICK),
    *cases("lora", "tp2", "llama", "rslora=true", "lora_plus_scale=4"),
    *cases("lora", "tp2", "llama", "lora_dropout=0.4", COLUMNS),
    *cases("lora", "tp2", "qwen2", "lora_bias=all"),
    *cases("lora", "tp2", "qwen", "from"),
    *cases("lora", "pp2", "qwen", "from"),
    *cases("prefix", "pp2", "qwen", "from"),
    *cases("lora", "tp2 pp2", "llama qwen2"),
    *cases("prefix", "tp2 pp2", "llama qwen2"),
    *cases("prefix", "tp2 sp pp2", "llama"),
    *cases("projected", "tp2 stage1", "llama"),
    *cases("prefix", "pp2 stage1", "llama"),
    *cases("prefix", "pp2 dp2", "llama"),
]
WRITTEN = [
    *cases("lora", "tp2", "llama"),
    *cases("lora", "pp2", "chatglm_v2"),
    *cases("prefix", "tp2", "bloom"),
    *cases("prefix", "pp2", "llama"),
    *cases("projected", "tp2", "llama"),
]
BROKEN = {  # a sum between ranks that is left out, see programs/own_training.py
    Case("llama", "lora", "tp2"): "tensor parallel gradient",
    Case("llama", "prefix", "tp2"): "tensor parallel gradient",
}


def job(case: Case, models: Path, root: Path, broken: str | None = None) -> dict[str, Any]:
    _, readers, degrees = LAYOUTS[case.layout]
    name = f"{case.name}{f' without {broken}' if broken else ''}"
    keys = [f"model_name_or_path={models / case.family}", f"dataset_name_or_path={models / 'data'}"]
    keys += [f"output_dir={root / name}", "max_length=64", "src_length=32", "save_strategy=no", "device=cpu"]
    keys += [
        "do_train=true",
        "do_eval=true",
        "logging_steps=1",
        f"max_steps={STEPS}",
        "max_grad_norm=0.5",
        "fp16_opt_level=O1",
    ]
    keys += ["per_device_train_batch_size=2", f"gradient_accumulation_steps={2 // readers}", *METHODS[case.method]]
    keys += [f"{key}={value}" for key, value in degrees.items()]
    for key in case.more:
        path = "lora_path" if case.method == "lora" else "prefix_path"
        keys.append(f"{path}={root / case.alone._replace(more=()).name}" if key == "from" else key)
    rate = LEARNING_RATE[case.method]
    return {"name": name, "config": keys, "divided": bool(degrees), "momentum": rate, "broken": broken}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of tiny models, and ``data``."""
    root = tmp_path_factory.mktemp("models")
    for family in dict.fromkeys(case.family for case in CASES):
        write_even_family(family, root / family)
    (root / "data").mkdir()
    for name, count in (("train", 13), ("dev", 5)):
        rows = [{"src": f"Say {'very ' * (i % 4)}{i}", "tgt": f"{i} " * (1 + i % 3)} for i in range(count)]
        (root / "data" / f"{name}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def runs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Number of ranks -> directory with the outputs of all runs, those of so many ranks and of one among them."""
    root = tmp_path_factory.mktemp("runs")
    failed: dict[int, BaseException] = {}

    def run(ranks: int) -> Path:
        if ranks in failed:  # once is enough
            raise failed[ranks]
        try:
            start(ranks)
        except BaseException as error:
            failed[ranks] = error
            raise
        return root

    @cache
    def start(ranks: int) -> None:
        path = root / f"jobs{ranks}.json"
        if ranks > 1:
            start(1)
            jobs = [job(case, models, root) for case in CASES if LAYOUTS[case.layout][0] == ranks]
            jobs += [job(case, models, root, what) for case, what in BROKEN.items() if LAYOUTS[case.layout][0] == ranks]
            path.write_text(json.dumps(jobs), encoding="utf-8")
            launch_well(ranks, "own_training.py", path, logs=root / f"logs{ranks}", seconds=500)
            return
        alone = dict.fromkeys(case.alone for case in CASES)
        first = [case for case in alone if "from" not in case.more]
        plain = {case._replace(more=()) for case in alone if "from" in case.more} - set(first)
        later = [case for case in alone if "from" in case.more]
        path.write_text(json.dumps([job(case, models, root) for case in (*first, *plain, *later)]), encoding="utf-8")
        command = [sys.executable, PROGRAMS / "own_training.py", path]
        environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-4000:]

    return run


def curve(out: Path) -> list[tuple[int, str, float]]:
    return [(r["step"], r["kind"], r.get("loss", r.get("eval_loss"))) for r in read_log(out)]


def adapter(out: Path, method: str) -> dict[str, np.ndarray]:
    return load_pdparams(out / WEIGHTS.get(method, "prefix_model_state.pdparams"), return_numpy=True)


def differences(root: Path, case: Case, name: str = "") -> tuple[float, float]:
    """Return the largest difference of losses, and of the adapter's numbers."""
    one, together = root / case.alone.name, root / (name or case.name)
    points = list(zip(curve(one), curve(together), strict=True))
    assert len(points) > STEPS and all(a[:2] == b[:2] for a, b in points)  # evaluations among them
    ours, theirs = adapter(together, case.method), adapter(one, case.method)
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    apart = max(float(np.abs(ours[key] - theirs[key]).max()) for key in theirs)
    return max(abs(a[2] - b[2]) for a, b in points), apart


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapter_is_that_of_one_process(runs: Callable[[int], Path], case: Case) -> None:
    losses, weights = differences(runs(LAYOUTS[case.layout][0]), case)
    assert losses < LOSS_TOLERANCE
    assert weights < WEIGHT_TOLERANCE


@pytest.mark.parametrize("case", dict.fromkeys(case.alone for case in CASES), ids=lambda case: case.name)
def test_one_process_learns(runs: Callable[[int], Path], case: Case) -> None:
    """Else equal numbers would say little."""
    points = curve(runs(1) / case.name)
    if "from" not in case.more:
        assert points[0][2] - min(point[2] for point in points) > 0.1
    assert all(np.abs(array).max() > 0.001 for name, array in adapter(runs(1) / case.name, case.method).items()
               if not name.endswith("bias"))  # fmt: skip


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_sum_that_is_left_out_shows(runs: Callable[[int], Path], case: Case) -> None:
    losses, weights = differences(runs(2), case, f"{case.name} without {BROKEN[case]}")
    assert losses > 100 * LOSS_TOLERANCE and weights > 100 * WEIGHT_TOLERANCE


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_result_is_an_adapter_of_an_undivided_model(runs: Callable[[int], Path], case: Case) -> None:
    root = runs(LAYOUTS[case.layout][0])
    alone, together = root / case.alone.name, root / case.name
    files = [{p.name for p in path.iterdir() if p.suffix in (".pdparams", ".npy")} for path in (alone, together)]
    assert files[0] == files[1]
    name = "lora_config.json" if case.method == "lora" else "prefix_config.json"
    configs = [json.loads((path / name).read_text(encoding="utf-8")) for path in (alone, together)]
    degrees = [config.pop("tensor_parallel_degree") for config in configs]
    assert configs[0] == configs[1] and all(degree in (-1, 1) for degree in degrees)
    if case.method != "lora":
        caches = [np.load(path / "pre_caches.npy") for path in (alone, together)]
        np.testing.assert_allclose(caches[1], caches[0], atol=WEIGHT_TOLERANCE)
