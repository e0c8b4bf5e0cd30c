"""A run goes on in another layout from a unified checkpoint, and from the parts of ranks in its own.

Every layout trains four steps and saves after two; a run that goes on from there has the losses of one process that was
never interrupted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from paddlesft.checkpoints.merge_shards import merge_shards
from paddlesft.config import load_run_config
from paddlesft.errors import CheckpointError
from paddlesft.models.weights import read_header, read_weights
from paddlesft.training.checkpoint_saving import complete_checkpoints, incomplete_checkpoints, what_is_missing
from paddlesft.training.resume import find_checkpoint
from paddlesft.training.run import train
from paddlesft.training.run_log import read_log
from paddlesft.tuning.lora import adapter_weights
from tests.parallel.ranks import PROGRAMS, REPO, launch, launch_well
from tests.parallel.test_gloo_training import PP, TP, sharded
from tests.tiny_families import write_tiny_family

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
STEPS, SAVED = 4, 2
GLOBAL_BATCH, MICRO_BATCH = 8, 2
LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {  # ranks, how many read different rows, keys
    "one": (1, 1, {}),
    "dp2": (2, 2, {}),
    "stage1": (2, 2, sharded(1)),
    "stage2": (2, 2, sharded(2)),
    "stage3": (2, 2, sharded(3)),
    "tp2": (2, 1, {TP: 2}),
    "pp2": (2, 1, {PP: 2}),
    "tp2_pp2": (4, 1, {TP: 2, PP: 2}),
}
METHODS = {
    "full": ["lora=false", "learning_rate=1e-3"],
    "lora": ["lora=true", "learning_rate=1e-2"],
    "dropout": ["lora=true", "learning_rate=1e-2", "lora_dropout=0.3"],
    "prefix": ["prefix_tuning=true", "lora=false", "num_prefix_tokens=4", "learning_rate=1e-2"],
}


class Resumed(NamedTuple):
    """A run that goes on: what is trained, where it was saved, where it goes on, whether from a unified checkpoint."""

    method: str
    saved: str
    now: str
    unified: bool = True

    @property
    def name(self) -> str:
        return f"{self.method}-{self.saved}-{self.now}{'' if self.unified else '-parts'}"


OTHER_LAYOUTS = [
    Resumed("full", *pair.split()) for pair in
    ("tp2 one", "pp2 dp2", "stage2 stage1", "tp2_pp2 stage1", "stage3 one", "stage1 stage3", "one tp2_pp2")
]  # fmt: skip
OTHER_LAYOUTS += [Resumed("lora", *pair.split()) for pair in ("tp2 one", "pp2 dp2", "tp2_pp2 stage1")]
OTHER_LAYOUTS += [Resumed("prefix", "tp2", "one")]
PARTS = [Resumed("full", name, name, False) for name in ("stage1", "stage3", "tp2_pp2")]
PARTS += [Resumed("lora", "tp2", "tp2", False), Resumed("lora", "pp2", "pp2", False)]
CASES = [*OTHER_LAYOUTS, *PARTS]


def job(method: str, layout: str, name: str, root: Path, *more: str) -> dict[str, Any]:
    _, readers, degrees = LAYOUTS[layout]
    keys = [f"model_name_or_path={root / 'model'}", f"dataset_name_or_path={root / 'data'}", "logging_steps=1"]
    keys += [f"output_dir={root / name}", "max_length=64", "src_length=32", f"max_steps={STEPS}", "device=cpu"]
    keys += ["save_strategy=steps", f"save_steps={SAVED}", "max_grad_norm=0.5", "fp16_opt_level=O1"]
    keys += [f"per_device_train_batch_size={MICRO_BATCH}", "evaluation_strategy=no"]
    keys += [f"gradient_accumulation_steps={GLOBAL_BATCH // MICRO_BATCH // readers}", *METHODS[method]]
    keys += [f"{key}={value}" for key, value in degrees.items()]
    return {"name": name, "config": [*keys, *more], "divided": bool(degrees)}


def run(ranks: int, jobs: list[dict[str, Any]], root: Path) -> None:
    """Run jobs one after the other."""
    number = len(list(root.glob("jobs*.json")))
    file = root / f"jobs{number}.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    if ranks > 1:
        launch_well(ranks, "own_training.py", file, logs=root / f"logs{number}", seconds=500)
        return
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, PROGRAMS / "own_training.py", file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def saved_name(method: str, layout: str, unified: bool) -> str:
    return f"{method}-{layout}{'' if unified else '-parts'}"


def resumed_job(case: Resumed, root: Path, *more: str) -> dict[str, Any]:
    source = root / saved_name(case.method, case.saved, case.unified) / f"checkpoint-{SAVED}"
    keys = [f"resume_from_checkpoint={source}", "save_strategy=no", *more]
    return job(case.method, case.now, case.name, root, *keys)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the outputs of all runs: ``METHOD-LAYOUT[-parts]`` saves, ``Resumed.name`` goes on."""
    root = tmp_path_factory.mktemp("runs")
    write_tiny_family("llama", root / "model")
    (root / "data").mkdir()
    rows = [{"src": f"Say {'very ' * (i % 4)}{i}", "tgt": f"{i} " * (1 + i % 3)} for i in range(29)]
    (root / "data" / "train.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    saved = sorted({(c.method, c.saved, c.unified) for c in CASES} | {(m, "one", True) for m in METHODS})
    saving = {
        ranks: [
            job(method, layout, saved_name(method, layout, unified), root, f"unified_checkpoint={unified}")
            for method, layout, unified in saved
            if LAYOUTS[layout][0] == ranks
        ]
        for ranks in (1, 2, 4)
    }
    resuming = {ranks: [resumed_job(c, root) for c in CASES if LAYOUTS[c.now][0] == ranks] for ranks in (1, 2, 4)}
    exact = Resumed("dropout", "tp2", "tp2")
    other = ["ignore_load_lr_and_optim=true", f"output_dir={root / 'fresh'}"]
    without = resumed_job(Resumed("full", "tp2", "one"), root, *other)
    run(1, saving[1], root)
    run(4, [*saving[4], *resuming[4]], root)
    divided = [*saving[2], job("dropout", "tp2", "dropout-tp2", root), *resuming[2], resumed_job(exact, root)]
    # an exploding learning rate: the first checkpoint is the best one
    keys = ["evaluation_strategy=steps", "eval_steps=1", "save_steps=1", "save_total_limit=2", "learning_rate=0.5"]
    keys += ["load_best_model_at_end=true", f"eval_dataset_path={root / 'data' / 'train.json'}"]
    keys += ["metric_for_best_model=loss", "lr_scheduler_type=constant"]
    divided += [job("full", layout, f"best-{layout}", root, *keys) for layout in ("pp2", "stage3")]
    late = [job for job in resuming[2] if not job["divided"]]  # in a process of its own: see own_training.py
    run(2, [job for job in sorted(divided, key=lambda job: job["divided"]) if job not in late], root)
    run(2, late, root)
    run(1, [*resuming[1], without], root)
    return root


def curve(out: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_log(out) if r["kind"] == "train"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_curve_goes_on(runs: Path, case: Resumed) -> None:
    alone, again = curve(runs / f"{case.method}-one"), curve(runs / case.name)
    assert list(again) == list(range(SAVED + 1, STEPS + 1))
    assert max(abs(again[step] - alone[step]) for step in again) < TOLERANCE


def test_without_the_optimizers_state_the_curve_would_not_go_on(runs: Path) -> None:
    alone, fresh = curve(runs / "full-one"), curve(runs / "fresh")
    assert max(abs(fresh[step] - alone[step]) for step in fresh) > 10 * TOLERANCE


def test_the_same_layout_draws_the_same_dropout(runs: Path) -> None:
    whole, again = curve(runs / "dropout-tp2"), curve(runs / "dropout-tp2-tp2")
    assert all(abs(again[step] - whole[step]) < 1e-6 for step in again)
    assert abs(whole[STEPS] - curve(runs / "dropout-one")[STEPS]) > TOLERANCE  # dropout does something


@pytest.mark.parametrize("layout", ["tp2", "pp2", "stage1", "stage2", "stage3", "tp2_pp2"])
def test_a_unified_checkpoint_has_the_files_of_one_process(runs: Path, layout: str) -> None:
    here, alone = (runs / f"full-{name}" / f"checkpoint-{SAVED}" for name in (layout, "one"))
    assert what_is_missing(here) is None
    names = [{p.relative_to(d).as_posix() for p in d.rglob("*") if "rng_state" not in p.name} for d in (here, alone)]
    assert names[0] == names[1]
    for file in ("", "training_state/optimizer.safetensors"):
        found, wanted = ((read_header(d / file) if file else read_weights(d))[0] for d in (here, alone))
        assert {n: (t.dtype, t.shape) for n, t in found.items()} == {n: (t.dtype, t.shape) for n, t in wanted.items()}
    assert json.loads((here / "config.json").read_text()).get("tensor_parallel_degree", 1) in (-1, 1)


@pytest.mark.parametrize("case", [("full", "tp2_pp2"), ("lora", "tp2"), ("lora", "pp2")])
def test_parts_of_ranks_can_be_merged(runs: Path, case: tuple[str, str], tmp_path: Path) -> None:
    parts, whole = (runs / saved_name(*case, unified) / f"checkpoint-{SAVED}" for unified in (False, True))
    merge_shards(parts, tmp_path / "merged")
    if case[0] == "lora":
        merged, unified = adapter_weights(tmp_path / "merged"), adapter_weights(whole)
        assert merged.keys() == unified.keys()
        assert all(abs(merged[name] - unified[name]).max() < 1e-5 for name in merged)
        return
    merged, unified = read_weights(tmp_path / "merged")[0], read_weights(whole)[0]
    assert merged.keys() == unified.keys()
    for name, tensor in merged.items():
        assert abs(tensor.load() - unified[name].load()).max() < 1e-5, name


def test_a_rank_killed_while_saving_leaves_the_last_checkpoint_intact(runs: Path, tmp_path: Path) -> None:
    for name in ("model", "data"):
        (tmp_path / name).symlink_to(runs / name)
    dying = job("lora", "tp2", "dying", tmp_path, "save_steps=1", "unified_checkpoint=false")
    (tmp_path / "jobs.json").write_text(json.dumps([dying]), encoding="utf-8")
    finished = launch(2, "dying_rank.py", tmp_path / "jobs.json", logs=tmp_path / "logs", seconds=200)
    assert finished.code != 0
    assert [path.name for path in complete_checkpoints(tmp_path / "dying")] == ["checkpoint-1"]
    broken = incomplete_checkpoints(tmp_path / "dying")
    assert [path.name for path, _ in broken] == [".checkpoint-2.incomplete"]
    found, passed_over = find_checkpoint(tmp_path / "dying", None, overwrite=False)
    assert found == tmp_path / "dying" / "checkpoint-1" and passed_over == broken


def test_parts_of_another_layout_are_refused(runs: Path) -> None:
    parts = runs / "full-tp2_pp2-parts" / f"checkpoint-{SAVED}"
    again = job("full", "one", "refused", runs, f"resume_from_checkpoint={parts}")
    with pytest.raises(CheckpointError) as error:
        train(load_run_config(None, again["config"]))
    text = str(error.value)
    assert "holds the part of each rank (unified_checkpoint: false)" in text and "tensor 2, now 1" in text
    assert "moments, float32 weights) cannot be divided anew and would be lost" in text
    assert f"merge-shards --model_name_or_path {parts} --output_path NEW_DIRECTORY," in text
    assert "unified_checkpoint: true from now on" in text


def test_the_best_checkpoint_and_the_limit_work_in_every_layout(runs: Path) -> None:
    for layout in ("pp2", "stage3"):
        out = runs / f"best-{layout}"
        kept = [path.name for path in complete_checkpoints(out)]
        state = json.loads((out / "trainer_state.json").read_text())
        best = Path(state["best_model_checkpoint"])
        assert best.name in kept and len(kept) == 2
        found, wanted = read_weights(out)[0], read_weights(best)[0]
        assert all((found[name].load() == wanted[name].load()).all() for name in wanted)
