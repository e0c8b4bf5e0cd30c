"""A family that is no Llama on the command line: train, merge-lora, predict, each in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families.tuning_runs import COMMON, METHODS, PROMPT_TOKENS, TuningRun


@pytest.mark.slow
def test_a_model_is_tuned_merged_and_asked(
    tuning_run: Callable[[str, str], TuningRun], run_cli: Callable, tmp_path: Path
) -> None:
    shared = tuning_run("mistral", "lora")
    run, merged, output = tmp_path / "run", tmp_path / "merged", tmp_path / "output.json"
    places = [f"model_name_or_path={shared.base}", f"train_dataset_path={shared.data}", f"output_dir={run}"]
    done = run_cli("train", *places, *COMMON, *METHODS["lora"])
    assert done.returncode == 0, done.stdout + done.stderr

    done = run_cli("merge-lora", "--lora_path", run, "--merge_model_path", merged)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "within the bound" in done.stdout

    asked = ["--model_name_or_path", merged, "--data_file", shared.data, "--output_file", output, "--batch_size", 3]
    how = ["--decode_strategy", "greedy_search", "--max_new_tokens", 48, "--src_length", PROMPT_TOKENS]
    done = run_cli("predict", *asked, *how)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [(line["src"], line["output"]) for line in lines] == list(shared.rows.items())
