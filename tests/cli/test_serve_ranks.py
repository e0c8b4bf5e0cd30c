"""``python -m paddle.distributed.launch llm/flask_server.py``: two gloo ranks on this machine, the first in front."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from paddlesft.cli.main import run_verb
from paddlesft.inference.generation import generate
from paddlesft.inference.loading import load_for_inference
from paddlesft.inference.sampling import SamplingOptions

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_ranks_serve_one_model_and_end_in_order(tiny_llama: Path, tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "2",
        "--log_dir",
        tmp_path / "logs",
    ]
    command += [REPO / "llm" / "flask_server.py", "--model_name_or_path", tiny_llama, "--flask_port", port]
    command += ["--page", "false", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    launcher = subprocess.Popen(
        [str(part) for part in command], env=environment, cwd=REPO, start_new_session=True, **quiet
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, launcher, tmp_path / "logs")
        messages = [{"role": "user", "content": "hello there"}]
        body = {"messages": messages, "temperature": 0, "max_tokens": 60, "min_tokens": 60}
        loaded = load_for_inference(tiny_llama)
        options = SamplingOptions(max_new_tokens=60, min_new_tokens=60)
        prompt = loaded.renderer.render_prompt(messages)
        wanted = generate(loaded.model, [prompt], options, loaded.stop_token_ids, tokenizer=loaded.tokenizer)[0].text
        whole = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        assert whole["choices"][0]["message"]["content"] == wanted
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            launcher.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and len(rest) > 20
        launcher.wait(60)
        assert (tmp_path / "logs" / "workerlog.0").read_text(encoding="utf-8").endswith("Stopped.\n")
    finally:
        launcher.kill()
        launcher.wait()


def wait_until_ready(url: str, launcher: subprocess.Popen[bytes], logs: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and launcher.poll() is None:
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("\n".join(log.read_text(encoding="utf-8")[-3000:] for log in sorted(logs.glob("workerlog.*"))))


def test_what_ranks_cannot_share_is_refused(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "3")
    assert run_verb("serve", [str(tiny_llama), "--page", "false", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "attention heads" in said and "cannot be shared evenly among 3 ranks" in said
    assert "or serve the whole model without paddle.distributed.launch" in said
    assert run_verb("serve", ["--lora_path", "somewhere", "--page", "false"]) == 2
    assert "Ranks share a model that is named" in capsys.readouterr().err
