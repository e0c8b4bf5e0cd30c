"""``paddlesft predict`` and ``llm/predictor.py`` as users run them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddlesft.cli.main import main

REPO = Path(__file__).resolve().parents[2]
ENVIRON = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


def predict(*args: object) -> int:
    return main(["predict", *map(str, args)])


def test_a_file_is_answered_and_the_run_is_described(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "dev.json", tmp_path / "out" / "o.json"
    data.write_text('{"src": "How are you?", "tgt": "Fine."}\n{"src": "And now?", "tgt": ""}\n')
    args = ["--model_name_or_path", tiny_llama, "--data_file", data, "--output_file", output, "--max_new_tokens", 4]
    assert predict(*args, "--batch_size", 2) == 0
    shown = capsys.readouterr().out
    assert f"Model: {tiny_llama}, float32 on cpu" in shown
    assert f"Rows: 2 from {data}" in shown
    assert "Generation: sampling with temperature 0.95, top_p 0.7, top_k 0, seed 42, up to 4 new tokens" in shown
    assert "2/2 rows, " in shown
    assert "2 replies in " in shown and "prompt tokens at" in shown and "8 generated at" in shown
    assert "Unfinished after 4 tokens (max_new_tokens): 2" in shown
    assert f"Replies: {output}" in shown
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["src"], line["tgt"]) for line in lines] == [("How are you?", "Fine."), ("And now?", "")]

    output.write_text(output.read_text()[:-5])
    assert predict(*args) == 0
    shown = capsys.readouterr().out
    assert "The last line of the earlier run was incomplete; its row was answered again." in shown
    assert "1 of 2 replies were there already and were kept." in shown
    assert [json.loads(line) for line in output.read_text().splitlines()] == lines

    assert predict(*args, "--decode_strategy", "greedy_search") == 2
    error = capsys.readouterr().err
    assert "decode_strategy: then 'sampling', now 'greedy_search'" in error
    assert "add --overwrite to start it anew" in error
    assert predict(*args, "--decode_strategy", "greedy_search", "--overwrite") == 0
    assert "Generation: greedy, up to 4 new tokens" in capsys.readouterr().out


def test_wrong_arguments_are_answered_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("--model_name_or_path", tmp_path, "--data_file", tmp_path / "none.json") == 2
    assert f"data_file: {tmp_path}/none.json is not a file." in capsys.readouterr().err
    assert predict("--model_name_or_path", tmp_path, "--batch_sise", 4) == 2
    assert "batch_size" in capsys.readouterr().err
    assert predict("--max_length", 100) == 2
    assert "max_length is 100 and src_length 1024: no token is left for the reply." in capsys.readouterr().err
    assert predict("--max_new_tokens", 4) == 2
    assert "No model is named. Give --model_name_or_path" in capsys.readouterr().err
    assert predict("--model_name_or_path", tmp_path / "nothing", "--max_new_tokens", 4) == 2
    assert "nothing" in capsys.readouterr().err


def test_the_commands_of_the_page_are_understood() -> None:
    from paddlesft.config import load_arguments
    from paddlesft.config.verbs import PredictConfig

    text = (REPO / "docs" / "predict.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^(?:paddlesft predict|python llm/predictor.py) (.+)$", text, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        load_arguments({"predict": PredictConfig}, overrides=shlex.split(command, comments=True))


def test_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("--help") == 0
    shown = capsys.readouterr().out
    for key in ("model_name_or_path", "lora_path", "prefix_path", "data_file", "output_file", "batch_size", "top_p"):
        assert key in shown


def test_the_benchmark_prints_upstreams_figures(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("--model_name_or_path", tiny_llama, "--benchmark", "--max_new_tokens", 3, "--batch_size", 2) == 0
    shown = capsys.readouterr().out
    assert "Benchmark: the first batch (2 rows), every reply 3 tokens ..." in shown
    assert "IPS: " in shown and "QPS: " in shown


def test_the_script_asks_two_sample_questions(tiny_llama: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPO / "llm" / "predictor.py"), "--model_name_or_path", str(tiny_llama),
         "--max_new_tokens", "3", "--decode_strategy", "greedy_search"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "***Source***\nhello world, how are you?\n***Target***\n\n***Output***\n" in done.stdout
    assert "***Source***\n你好，请问你是谁?\n" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "output.json").read_text(encoding="utf-8").splitlines()]
    assert [line["src"] for line in lines] == ["hello world, how are you?", "你好，请问你是谁?"]
    assert "Traceback" not in done.stderr and "Deprecat" not in done.stderr


@pytest.mark.slow
def test_a_killed_run_is_continued_to_the_same_file(tiny_llama: Path, tmp_path: Path) -> None:
    data = tmp_path / "dev.json"
    rows = [{"src": f"Question {i} " + "and more " * (i % 9), "tgt": str(i)} for i in range(60)]
    data.write_text("\n".join(map(json.dumps, rows)))

    def start(output: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "paddlesft", "predict", "--model_name_or_path", str(tiny_llama), "--data_file",
             str(data), "--output_file", str(output), "--max_new_tokens", "12", "--top_k", "50", "--batch_size", "4"],
            env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    whole, killed = start(tmp_path / "whole.json"), start(tmp_path / "killed.json")
    deadline = time.monotonic() + 300
    path = tmp_path / "killed.json"
    while not path.exists() or path.read_bytes().count(b"\n") < 8:
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[0]
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    written = path.read_bytes()
    assert 8 <= written.count(b"\n") < 60, "the run was not killed in the middle"
    path.write_bytes(written[:-3])
    again = start(path)
    shown = again.communicate(timeout=300)[0]
    assert again.returncode == 0, shown
    assert f"{written.count(bytes([10])) - 1} of 60 replies were there already" in shown
    assert whole.communicate(timeout=300)[0] and whole.returncode == 0
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert path.read_bytes().count(b"\n") == 60


@pytest.mark.parametrize("key", ["output_file", "speed_file"])
@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("rows.json", "is the data_file itself"),
        (".", "is a directory"),
        ("/dev/null", "is a device or a pipe"),
        ("rows.json/o.json", "rows.json is a file, and a directory is needed there"),
    ],
)
def test_an_output_that_would_destroy_something_is_refused(
    key: str,
    output: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text('{"src": "Hello"}\n')
    arguments = ["--model_name_or_path", "nowhere", "--data_file", "rows.json", f"--{key}", output, "--overwrite"]
    assert predict(*arguments) == 2
    assert problem in capsys.readouterr().err
    assert (tmp_path / "rows.json").read_text() == '{"src": "Hello"}\n'
