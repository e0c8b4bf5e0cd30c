"""Two processes over gloo train the steps that one process trains, and resume."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paddlesft.training.checkpoint_saving import complete_checkpoints
from paddlesft.training.run_log import read_log

REPO = Path(__file__).resolve().parents[2]


def keys(out: Path, model: Path, data: Path) -> list[str]:
    return [f"model_name_or_path={model}", f"dataset_name_or_path={data}", f"output_dir={out}", "max_length=64",
            "src_length=32", "lora=true", "learning_rate=1e-2", "per_device_train_batch_size=2", "num_train_epochs=2",
            "logging_steps=1", "save_strategy=steps", "save_steps=4", "evaluation_strategy=epoch"]  # fmt: skip


def launch(out: Path, model: Path, data: Path) -> str:
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir",
               str(out.parent / f"log-{out.name}"), str(REPO / "llm/finetune.py"), *keys(out, model, data)]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def curve(out: Path) -> list[tuple[int, str, float]]:
    return [(r["step"], r["kind"], r.get("loss", r.get("eval_loss"))) for r in read_log(out)]


@pytest.mark.slow
def test_two_processes_are_one(tiny_llama: Path, tmp_path: Path, run_here) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, count in (("train", 13), ("dev", 5)):  # 13 rows: the last step of an epoch has one row, for one process
        rows = [{"src": f"Say {'very ' * (i % 4)}{i}", "tgt": f"{i} " * (1 + i % 3)} for i in range(count)]
        (data / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    alone = run_here("train", *keys(tmp_path / "one", tiny_llama, data), "gradient_accumulation_steps=2")
    assert alone.returncode == 0, alone.stderr
    shown = launch(tmp_path / "two", tiny_llama, data)
    assert shown.count("step 8/8") == 1 and "× 2 processes" in shown  # only the first process talks
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == 10 and [point[:2] for point in one] == [point[:2] for point in two]
    assert max(abs(a[2] - b[2]) for a, b in zip(one, two)) < 1e-5
    shutil.rmtree(complete_checkpoints(tmp_path / "two")[-1])
    shown = launch(tmp_path / "two", tiny_llama, data)
    assert "written by this very run; step 4 is done" in shown
    assert curve(tmp_path / "two") == two
