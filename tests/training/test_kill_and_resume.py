"""kill -9 in the middle of saving: nothing is lost, and the loss curve goes on as if never stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paddlesft.training.checkpoint_saving import complete_checkpoints, incomplete_checkpoints
from tests.training.small_runs import losses

REPO = Path(__file__).resolve().parents[2]
KEYS = ["lora=true", "lora_dropout=0.2", "num_train_epochs=3", "per_device_train_batch_size=2", "logging_steps=4",
        "gradient_accumulation_steps=2", "save_strategy=steps", "save_steps=5"]  # fmt: skip
Process = Callable[[Path, str, str], tuple[int, str]]


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """Train in a process that kills itself at a step and a place; gives its exit code and what it printed."""
    runner = subprocess.Popen(
        [sys.executable, "-m", "tests.training.interrupted_run"],
        cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def run(output_dir: Path, kill_at: str, where: str) -> tuple[int, str]:
        print(json.dumps([str(output_dir), kill_at, where, KEYS]), file=runner.stdin, flush=True)
        return tuple(json.loads(runner.stdout.readline()))

    yield run
    runner.communicate(timeout=60)


@pytest.fixture(scope="module")
def whole_run(process: Process, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    output_dir = tmp_path_factory.mktemp("whole")
    code, printed = process(output_dir, "never", "-")
    assert code == 0, printed[-2000:]
    return output_dir


@pytest.mark.parametrize("where", ["weights", "marker", "rename"])
def test_a_run_killed_while_saving_goes_on_as_if_never_stopped(
    process: Process, whole_run: Path, tmp_path: Path, where: str
) -> None:
    code, _ = process(tmp_path / "parts", "15", where)
    assert code == -9
    assert [path.name for path in complete_checkpoints(tmp_path / "parts")] == ["checkpoint-5", "checkpoint-10"]
    leftovers = incomplete_checkpoints(tmp_path / "parts")
    assert leftovers == [(tmp_path / "parts" / ".checkpoint-15.incomplete", "the run ended while it was being written")]
    code, printed = process(tmp_path / "parts", "never", "-")
    assert code == 0, printed[-2000:]
    assert "resume checkpoint-10 ['.checkpoint-15.incomplete']" in printed
    assert [step for step, _ in losses(whole_run)] == [4, 8, 12, 16, 18]
    assert losses(tmp_path / "parts") == losses(whole_run)
    weights = "checkpoint-15/lora_model_state.pdparams"
    final = [(run / weights).read_bytes() for run in (whole_run, tmp_path / "parts")]
    assert final[0] == final[1]
    assert incomplete_checkpoints(tmp_path / "parts") == []
