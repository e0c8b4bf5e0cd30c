"""``paddlesft export-hf`` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from paddlesft.checkpoints.verify import logits_of
from paddlesft.models import load_model


def test_export_and_back(
    run_cli: Callable, run_here: Callable, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    model, out = tiny_family("qwen2"), tmp_path / "out"
    done = run_cli("export-hf", model, out)
    assert done.returncode == 0, done.stderr
    assert "Wrote Qwen2ForCausalLM for transformers in" in done.stdout and "stored as   float32" in done.stdout
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["torch_dtype"]) == ("qwen2", "float32") and (out / "tokenizer.json").is_file()
    prompts = [[3, 5, 7, 11, 13]]
    again, original = (logits_of(load_model(directory), prompts)[0] for directory in (out, model))
    np.testing.assert_array_equal(again, original)
    taken = run_here("export-hf", model, out)
    assert taken.returncode == 2 and "a directory that is not empty" in taken.stderr
    assert run_here("export-hf", "--overwrite", model, out).returncode == 0


def test_errors_are_messages(run_here: Callable, tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    adapter.mkdir()
    (adapter / "lora_config.json").write_text("{}", encoding="utf-8")
    for arguments, message in (
        ([], "MODEL and DIR are needed; found: nothing. usage: paddlesft export-hf MODEL DIR"),
        ([adapter, out], "adapter is a LoRA adapter directory, not a model"),
        ([tiny_family("glm"), out], "Models of the family glm cannot be converted from or to Hugging Face"),
        ([tiny_family("qwen"), out], "transformers has no Qwen 1"),
    ):
        done = run_here("export-hf", *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not out.exists()
    assert "usage: paddlesft export-hf MODEL DIR" in run_here("export-hf", "--help").stdout
