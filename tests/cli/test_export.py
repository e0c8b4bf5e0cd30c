"""``paddlesft export`` and ``llm/export_model.py`` as users run them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.config import load_arguments
from paddlesft.config.export import ExportConfig

REPO = Path(__file__).resolve().parents[2]

EXPORT_COMMAND = """--model_name_or_path facebook/llama-7b --output_path ./inference --dtype float16 --lora_path ./ckpt
    --quant_type None --src_length 300 --max_length 512 --inference_model --export_precache true --block_attn
    --top_k 5 --batch_size 8"""


def test_a_command_of_paddlenlps_export_can_be_pasted() -> None:
    configs, _, notices = load_arguments({"export": ExportConfig}, None, EXPORT_COMMAND.split())
    config = configs["export"]
    assert (config.model_name_or_path, config.output_path) == ("facebook/llama-7b", "./inference")
    assert (config.dtype, config.lora_path, config.quant_type, config.format) == ("float16", "./ckpt", None, "paddle")
    said = "\n".join(notices)
    for key in ("src_length", "max_length", "inference_model", "export_precache", "block_attn", "top_k", "batch_size"):
        assert f"{key} has no effect: " in said
    assert len(notices) == 7


def test_export_shows_what_it_proves_and_predict_takes_it(
    run_here: Callable, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    model, out = tiny_family("qwen2"), tmp_path / "graph"
    arguments = ("export", "--model_name_or_path", model, "--output_path", out, "--check_tokens", 4)
    done = run_here(*arguments, "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    for text in (
        f"Model: {model}, float32 on cpu", "Tracing and writing the graph ...", "What is the capital of France?",
        "4/4", "Checked: the written graph, in one ragged batch and one by one", "model.json (the new IR; Paddle 3.",
        "model.pdiparams ", "float16 was asked for and has no CPU kernels", f"Directory: {out}",
        f"Next: paddlesft predict --mode static --model_name_or_path {out}",
    ):  # fmt: skip
        assert text in done.stdout, done.stdout
    assert done.stdout.count("4/4") == 6 and "out tensor" not in done.stderr

    data = tmp_path / "dev.json"
    data.write_text('{"src": "How are you?", "tgt": ""}\n{"src": "And what is that now?", "tgt": ""}\n')
    replies = []
    for mode, directory in (("dynamic", model), ("static", out)):
        answers = tmp_path / f"{mode}.json"
        done = run_here(
            "predict", "--mode", mode, "--model_name_or_path", directory, "--data_file", data, "--output_file", answers,
            "--batch_size", 2, "--max_new_tokens", 6,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        replies.append(answers.read_text())
    assert replies[0] == replies[1] and replies[0].count("\n") == 2

    taken = run_here(*arguments)
    assert taken.returncode == 2 and "a directory that is not empty" in taken.stderr
    again = run_here("export", "--model_name_or_path", out, "--output_path", tmp_path / "again")
    assert again.returncode == 2 and f"Here a model is needed: give {model}" in again.stderr


def test_a_graph_that_differs_ends_with_code_1(
    run_here: Callable, tiny_family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paddlesft.export import directory

    real = directory.replies_of

    def altered(*arguments: object) -> list:
        replies = real(*arguments)
        replies[2].logits[1] += 1
        return replies

    monkeypatch.setattr(directory, "replies_of", altered)
    named = ("--model_name_or_path", tiny_family("llama"), "--output_path", tmp_path / "g")
    done = run_here("export", *named, "--check_tokens", 2)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "new token 2 of 2: the model takes" in done.stderr and "It was not kept." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_errors_are_messages(run_here: Callable, tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    model, out = tiny_family("llama"), tmp_path / "out"
    named = ("--model_name_or_path", model, "--output_path", out)
    for arguments, message in (
        (["--model_name_or_path", model], "output_path is missing. Example: paddlesft export --model_name_or_path"),
        (["--output_path", out], "model_name_or_path is missing: no model is named. Example"),
        ([*named, "--format", "tflite"], 'format: found "tflite" (text); allowed: one of paddle, onnx, hf'),
        ([*named, "--check_tokens", 5000], "check_tokens: found 5000; the shortest question of the check has "),
        ([*named, "--quant_type", "weight_only_int8"], "holds float weights, and predict quantizes nothing"),
        ([*named, "--output_path", model / "below"], "Inputs are never changed"),
        ([*named, "--format", "hf", "--lora_path", model], "is no LoRA directory: it has no lora_config.json"),
    ):
        done = run_here("export", *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not out.exists()
    assert "paddlesft export --model_name_or_path DIR --output_path OUT" in run_here("export", "--help").stdout


def test_hugging_faces_layout_is_a_format(
    run_here: Callable, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    named = ("--model_name_or_path", tiny_family("qwen2"), "--output_path", tmp_path / "o")
    done = run_here("export", *named, "--format", "hf")
    assert done.returncode == 0 and "Wrote Qwen2ForCausalLM for transformers in" in done.stdout
    assert json.loads((tmp_path / "o" / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.slow
def test_the_real_model_by_the_script(run_cli: Callable, smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "graph"
    command = [sys.executable, "llm/export_model.py", "--model_name_or_path", smollm2, "--output_path", out]
    done = subprocess.run(
        [*map(str, command), "--check_tokens", "8"], cwd=REPO, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8/8") == 6 and "model.pdiparams 538" in done.stdout
    asked = run_cli(
        "predict", "--mode", "static", "--model_name_or_path", out, "--max_samples", 1, "--max_new_tokens", 12,
        "--decode_strategy", "greedy_search", cwd=tmp_path,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert "***Output***\nHello world, it's a pleasure" in asked.stdout, asked.stdout
