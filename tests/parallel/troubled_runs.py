"""Runs of a tiny model on ranks of which one gets into trouble."""

from __future__ import annotations

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paddlesft.parallel.launch import Launched, launch
from paddlesft.parallel.nodes import Nodes
from tests.parallel.ranks import PROGRAMS

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def write_rows(directory: Path, rows: int = 24) -> Path:
    """Write training data (and a few rows to evaluate) into a directory and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", rows), ("dev", 4)):
        content = [{"src": f"Say {'very ' * (i % 4)}{i}", "tgt": f"{i} " * (1 + i % 3)} for i in range(count)]
        (directory / f"{name}.json").write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    return directory


def run_keys(out: Path, model: Path, data: Path, *more: str) -> list[str]:
    """Return the keys of a LoRA run of 6 steps of 4 rows that saves every second step."""
    keys = [f"model_name_or_path={model}", f"dataset_name_or_path={data}", f"output_dir={out}", "max_length=64"]
    keys += ["src_length=32", "lora=true", "learning_rate=1e-2", "num_train_epochs=1", "logging_steps=1", "device=cpu"]
    return [*keys, "save_strategy=steps", "save_steps=2", "per_device_train_batch_size=2", *more]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def troubled(kind: str, rank: int, step: int, out: Path, keys: list[str], attempt: int = 0) -> tuple[Launched, str]:
    """Run two ranks, one of which gets into trouble, once.

    Returns:
        What is left, and what was shown.
    """
    shown: list[bytes] = []
    launched = launch(
        command(kind, rank, step, out, keys),
        2,
        out.with_name(f"{out.name}-log"),
        show=lambda stream, data: shown.append(data),
        environ=ONE_THREAD,
        on_cpu=True,
        attempt=attempt,
    )
    return launched, b"".join(shown).decode()


def troubled_on_two_nodes(kind: str, rank: int, step: int, out: Path, keys: list[str]) -> list[Launched]:
    """As ``troubled``, with one rank on each of two machines; the second one has an address of its own."""
    port = free_port()

    def node(number: int) -> Launched:
        nodes = Nodes(2, number, "127.0.0.1", port, f"127.0.0.{1 + number}")
        logs = out.with_name(f"{out.name}-log-{number}")
        return launch(command(kind, rank, step, out, keys), 1, logs, nodes=nodes, environ=ONE_THREAD, on_cpu=True)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(node, range(2)))


def command(kind: str, rank: int, step: int, out: Path, keys: list[str]) -> list[str]:
    """Return the command of a rank."""
    marker = out.with_name(f"{out.name}-marker")
    return [sys.executable, str(PROGRAMS / "troubled_rank.py"), kind, str(rank), str(step), str(marker), *keys]
