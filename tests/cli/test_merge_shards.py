"""``paddlesft merge-shards``, ``split-shards`` and tools/merge_tp_params.py as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.models.provenance import fingerprint

REPO = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def split(run_here: Callable, tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama split for two cards."""
    arguments = ("--model_name_or_path", tiny_llama, "--output_path", tmp_path / "two")
    done = run_here("split-shards", *arguments, "--tensor_parallel_degree", 2)
    assert done.returncode == 0, done.stderr
    assert "files    2, the largest of" in done.stdout and "model_state.tp00.pdparams, ..." in done.stdout
    assert "21, 16 of them divided" in done.stdout and "bit for bit" in done.stdout
    return tmp_path / "two"


def test_both_directions(run_here: Callable, split: Path, tiny_llama: Path, tmp_path: Path) -> None:
    arguments = ("--model_name_or_path", split, "--output_path", tmp_path / "merged")
    done = run_here("merge-shards", *arguments, "--compute_logits", "--device", "gpu")
    assert done.returncode == 0, done.stderr
    assert "device has no effect: joining parts is copying" in done.stderr
    for part in (
        "from     2 files of a full model (tensor parallel 2)", "weights  21, 16 of them joined from parts",
        "type     float32, no number was changed", "42 parts found again bit for bit", "computed on four prompts, up",
        f"Next: paddlesft chat --model_name_or_path {tmp_path / 'merged'}",
    ):  # fmt: skip
        assert part in done.stdout, done.stdout
    assert fingerprint(tmp_path / "merged") == fingerprint(tiny_llama)
    done = run_here("merge-shards", *arguments)
    assert done.returncode == 2 and "it is a directory that is not empty" in done.stderr
    assert run_here("merge-shards", *arguments, "--overwrite").returncode == 0


def test_upstream_arguments(split: Path, tmp_path: Path) -> None:
    command = [sys.executable, "tools/merge_tp_params.py", "--model_name_or_path", split]
    command += ["--output_path", tmp_path / "m"]
    done = subprocess.run([*map(str, command)], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m/model.safetensors").is_file() and (tmp_path / "m/tokenizer.json").is_file()


def test_errors_are_messages(run_here: Callable, split: Path, tmp_path: Path) -> None:
    (split / "model_state.tp01.pdparams").unlink()
    for verb, arguments, message in (
        ("merge-shards", (), "model_name_or_path is missing. Example: paddlesft merge-shards"),
        ("merge-shards", ("--model_name_or_path", split), "output_path is missing. Example: paddlesft merge-shards"),
        ("merge-shards", ("--model_name_or_path", split, "--output_path", tmp_path / "m"), "Missing: tp01."),
        ("split-shards", ("--model_name_or_path", split), "output_path is missing. Example: paddlesft split-shards"),
        ("split-shards", ("--output_path", tmp_path / "m"), "model_name_or_path is missing. Example: paddlesft split"),
    ):
        done = run_here(verb, *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    for verb in ("merge-shards", "split-shards"):
        assert run_here(verb, "--help").stdout.count("--output_path") >= 2
