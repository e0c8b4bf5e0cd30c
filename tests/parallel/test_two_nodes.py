"""Two machines on one: two launches with one master and logs of their own train the steps of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.training.run_log import read_log
from tests.parallel.ranks import REPO
from tests.parallel.troubled_runs import free_port, run_keys, write_rows

METHOD = ["lora=false", "learning_rate=1e-3", "max_grad_norm=0.5", "num_train_epochs=2", "save_strategy=no"]


def curve(out: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_log(out) if record["kind"] == "train"]


@pytest.mark.slow
def test_two_machines_train_as_one_process(run_here: Callable, tiny_llama: Path, tmp_path: Path) -> None:
    data, out, alone = write_rows(tmp_path / "data", 13), tmp_path / "out", tmp_path / "alone"
    keys = run_keys(out, tiny_llama, data, *METHOD, "tensor_parallel_degree=2")
    port, nodes = free_port(), []
    for number in range(2):
        environ = {"NNODES": "2", "RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environ["POD_IP"] = f"127.0.0.{1 + number}"  # the ranks have to find those of the other machine there
        nodes.append(
            subprocess.Popen(
                [sys.executable, "-m", "paddlesft", "train", "--nproc", "2", *keys],
                env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", **environ},
                cwd=REPO,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        shown = [node.communicate(timeout=240)[0] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(shown)
    assert "2 processes on this machine, number 0 of 2" in shown[0] and "step 8/8" in shown[0]
    assert shown[1] == (
        f"2 processes on this machine, number 1 of 2 (master 127.0.0.1:{port}); the run is shown on machine 0; "
        f"logs: {out}/log/node-1/workerlog.N\n"
    )
    assert all((out / "log" / f"node-{number}" / "workerlog.1").is_file() for number in range(2))
    done = run_here("train", *run_keys(alone, tiny_llama, data, *METHOD, "gradient_accumulation_steps=2"))
    assert done.returncode == 0, done.stderr
    one, four = curve(alone), curve(out)
    assert [step for step, _ in one] == [step for step, _ in four] == list(range(1, 9))
    assert one[0][1] - one[-1][1] > 0.05  # it learns
    assert max(abs(a[1] - b[1]) for a, b in zip(one, four)) < 1e-4
