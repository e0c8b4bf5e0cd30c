"""``paddlesft benchmark`` as users run it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.inference import machine_peaks

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_directory_is_measured(
    tiny_llama: Path, tmp_path: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_peaks, "SIDE", {"cpu": 128})
    monkeypatch.setattr(machine_peaks, "COPIED", {"cpu": 1 << 20})
    output = tmp_path / "figures" / "bench.json"
    few = ["--prompt_length", 12, "--new_tokens", 2, "--repetitions", 2, "--warm_up", 0]
    done = run_here("benchmark", tiny_llama, *few, "--batch_size", "1,2", "--output_file", output)
    assert done.returncode == 0, done.stderr
    assert f"Model: {tiny_llama}, eager, float32\n" in done.stdout
    assert "Prompts of 12 tokens, 2 new ones; medians of 2 rounds" in done.stdout
    assert "1 row" in done.stdout and "2 rows" in done.stdout
    for name in ("prefill, tokens/s", "decode, tokens/s", "share of memory bandwidth", "share of peak operations"):
        assert name in done.stdout
    assert f"Figures: {output}" in done.stdout
    assert [one["batch_size"] for one in json.loads(output.read_text())["results"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No model is named. Example: paddlesft benchmark models/merged"),
        (["{dir}"], "config.json"),
        (["{dir}/absent"], "absent"),
        (["{dir}", "--promt_length", 5], "prompt_length"),
        (["{dir}", "--batch_size", "1,x"], "batch_size: '1,x' found; allowed: numbers from 1, with commas"),
        (["{dir}", "--batch_size", "0"], "batch_size: '0' found"),
        (["{dir}", "--new_tokens", 0], "new_tokens"),
        (["{dir}", "--output_file", "{dir}"], "is a directory. Give the name of a file."),
        (["{dir}", "--output_file", __file__ + "/o.json"], "test_benchmark.py is a file, and a directory is needed"),
    ],
)
def test_bad_input_is_answered(arguments: list[object], said: str, tmp_path: Path, run_here: Run) -> None:
    done = run_here("benchmark", *(str(word).format(dir=tmp_path) for word in arguments))
    assert done.returncode == 2 and not done.stdout
    assert said in done.stderr and "Traceback" not in done.stderr
