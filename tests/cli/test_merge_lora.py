"""``paddlesft merge-lora`` and tools/merge_lora_params.py as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.checkpoints.adapters import write_adapter

REPO = Path(__file__).resolve().parent.parent.parent


def test_merge_shows_the_proof(run_cli: Callable, tiny_llama: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", tiny_llama, str(tiny_llama))
    done = run_cli("merge-lora", "--lora_path", lora, "--merge_model_path", tmp_path / "merged", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert "fingerprint matches" in done.stdout and "14 layers, scaling 2" in done.stdout
    assert "within the bound of" in done.stdout and "bfloat16 (summed in float32)" in done.stdout
    assert "Skip loading" not in done.stderr
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_upstream_arguments(tiny_llama: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", tiny_llama)
    command = [sys.executable, "tools/merge_lora_params.py", "--model_name_or_path", tiny_llama]
    command += ["--lora_path", lora, "--merge_model_path", tmp_path / "merged", "--device", "cpu"]
    done = subprocess.run([*map(str, command)], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Note:" in done.stdout and "only names and shapes were checked" in done.stdout
    assert (tmp_path / "merged" / "paddlesft.json").is_file()


def test_errors_are_messages(run_here: Callable, tiny_llama: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([], "lora_path is missing. Example: paddlesft merge-lora"),
        (["--lora_path", "x"], "merge_model_path is missing"),
        (["--lora_path", tmp_path / "no", "--merge_model_path", tmp_path / "m"], "no is not a directory"),
        (["--lora_pth", "x"], "lora_path"),
    ):
        done = run_here("merge-lora", *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert run_here("merge-lora", "--help").stdout.count("--merge_model_path") >= 2
