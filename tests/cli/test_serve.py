"""``paddlesft serve`` and ``llm/flask_server.py``: what they refuse, and a whole life of the process."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from paddlesft.cli.main import run_verb
from paddlesft.cli.serve import page_host, settings_of, warning_about, with_lengths
from paddlesft.config.serve import ServeConfig
from paddlesft.serving.settings import ServingSettings

REPO = Path(__file__).resolve().parents[2]


class Started:
    """A process whose output can be waited for, but not for ever."""

    def __init__(self, *command: object, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1", **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.errors: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=lambda: [self._lines.put(line.rstrip("\n")) for line in self.process.stdout]),
            threading.Thread(target=lambda: self.errors.extend(self.process.stderr)),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.end(10)

    def lines_until(self, beginning: str, seconds: float = 90) -> list[str]:
        """Return what the process says up to a line."""
        lines, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                lines.append(self._lines.get(timeout=0.5))
                if lines[-1].startswith(beginning):
                    return lines
        raise AssertionError(f"{beginning!r} never came: {lines}\n{''.join(self.errors)}")

    def end(self, seconds: float) -> int:
        """Wait for the process and return its exit code."""
        code = self.process.wait(timeout=seconds)
        for reader in self._readers:
            reader.join(timeout=seconds)
        return code


@pytest.mark.slow
def test_a_life_of_the_server(tiny_llama: Path) -> None:
    with Started(
        "llm/flask_server.py", "--model_name_or_path", tiny_llama, "--port", 0, "--flask_port", 0, "--title", "Tiny",
        "--served_model_name", "tiny", "--src_length", 256, "--batch_size", 1, PADDLESFT_API_KEY="k1,k2",
    ) as server:  # fmt: skip
        (loading,) = server.lines_until("Loading the model")
        url = re.search(r"http://[\d.:]+", loading)[0]
        client = httpx.Client(base_url=url, headers={"Authorization": "Bearer k2"}, timeout=30)
        assert client.get("/health").status_code == 200
        early = client.get("/ready")
        assert early.status_code == 503 and early.json()["status"] == "The model is being loaded."
        assert client.get("/v1/models").headers["Retry-After"] == "5"

        said = server.lines_until("Try:")
        assert client.get("/ready").json() == {"status": "ready"}
        assert "Names:  tiny; tiny answers requests that name none" in said
        curl = re.sub(r"^Try: +", "", said[-1])
        done = subprocess.run(
            curl, shell=True, capture_output=True, text=True, env={**os.environ, "PADDLESFT_API_KEY": "k1"}, timeout=60
        )
        answer = json.loads(done.stdout)
        assert answer["object"] == "chat.completion" and answer["usage"]["completion_tokens"] >= 1
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert 'paddlesft_requests_total{path="/v1/chat/completions",status="200"} 1.0' in client.get("/metrics").text

        (page_line,) = server.lines_until("Page:")
        page = page_line.split()[-1]
        assert "Tiny" in httpx.get(page, timeout=30).text

        body = {"messages": [{"role": "user", "content": "Count."}], "stream": True, "max_tokens": 300}
        body |= {"logit_bias": {"2": -100}}  # the random model must not end by itself
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            events = (line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: "))
            for _ in range(3):
                next(events)
            server.process.send_signal(signal.SIGTERM)
            server.lines_until("Stopping")
            refused = client.post("/v1/chat/completions", json=body)
            assert refused.status_code == 503 and refused.json()["error"]["message"] == "The server is stopping."
            rest = list(events)
        assert rest[-1] == "[DONE]" and json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
        assert server.end(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(page)
        log = [json.loads(line) for line in server.errors if line.startswith("{")]
        assert [line["status"] for line in log if line["path"] == "/v1/chat/completions"] == [200, 503, 200]
        assert log[-1]["generated_tokens"] == 300 and log[-1]["finish_reason"] == "length"
        assert not any("Count" in json.dumps(line) for line in log)


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path, run_here) -> None:
    threads = threading.active_count()
    done = run_here("serve", tmp_path / "nothing", "--port", 0, "--flask_port", 0)
    assert done.returncode == 2 and done.stdout.startswith("Loading the model; http://127.0.0.1:")
    assert str(tmp_path / "nothing") in done.stderr and "Traceback" not in done.stderr
    assert threading.active_count() == threads


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    there = importlib.util.find_spec
    gone = ("flask", "prometheus_client")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else there(name))
    assert run_verb("serve", ["somewhere"]) == 2
    said = capsys.readouterr().err
    assert "Serving needs Flask, prometheus-client, which are not installed. Run: pip install" in said


def test_a_port_in_use_is_said_before_anything_is_loaded(tmp_path: Path, run_here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for keys in (["--flask_port", port, "--page", "false"], ["--port", port, "--flask_port", 0]):
            done = run_here("serve", tmp_path / "nothing", *keys)
            assert done.returncode == 2 and done.stdout == ""
            assert done.stderr == (
                f"paddlesft serve: Cannot listen on 127.0.0.1 port {port}: another program listens there. Stop it, or "
                "choose another port.\n"
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No model is named. Example: paddlesft serve models/merged"),
        (["m", "--port", "8010"], "flask_port and port are both 8010; API and chat page need a port each."),
        (["m", "--max_length", "64", "--src_length=64"], "max_length is 64 and src_length 64: no token is left for"),
        (["m", "--api_key="], "api_key: key 1 of 1 is empty or holds spaces"),
        (["m", "--flask_prot=1"], "unknown key 'flask_prot'. Did you mean 'flask_port'?"),
    ],
)
def test_what_cannot_be_served(arguments: list[str], message: str, run_here) -> None:
    done = run_here("serve", *arguments, PADDLESFT_API_KEY="")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [
        ("127.0.0.1", (), False), ("::1", (), False), ("localhost", (), False), ("0.0.0.0", ("k",), False),
        ("0.0.0.0", (), True), ("::", (), True), ("192.168.0.5", (), True), ("myhost", (), True),
    ],
)  # fmt: skip
def test_an_open_door_is_said_aloud(host: str, keys: tuple[str, ...], warned: bool) -> None:
    warning = warning_about(host, keys)
    assert (warning is not None) == warned
    assert page_host(host, keys) == ("127.0.0.1" if keys and host == "0.0.0.0" else host)
    assert not warned or (warning.startswith("WARNING: ") and host in warning and "PADDLESFT_API_KEY" in warning)


@pytest.mark.parametrize(
    ("keys", "context", "prompt", "reply"),
    [
        ({}, 8192, 8191, 2048),
        ({}, 512, 511, 511),
        ({}, None, 4095, 2048),
        ({"src_length": 300}, 512, 300, 511),
        ({"src_length": 1024, "max_length": 1536}, 8192, 1024, 512),
        ({"max_length": 100}, 8192, 99, 99),
        ({"src_length": 9999, "max_output_tokens": 9999}, 512, 511, 511),
    ],
)
def test_lengths_follow_from_keys_and_context(keys: dict, context: int | None, prompt: int, reply: int) -> None:
    settings = with_lengths(ServingSettings(), ServeConfig(**keys), context)
    assert (settings.src_length, settings.max_output_tokens) == (prompt, reply)


def test_settings_come_from_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLESFT_API_KEY", "b")
    config = ServeConfig(api_key=["a"], top_p=0.9, temperature=0.0, request_timeout=5.0, default_max_tokens=99)
    settings = settings_of(config)
    assert settings.api_keys == ("a", "b") and settings.request_timeout == 5.0
    assert dict(settings.defaults) == {"top_p": 0.9, "temperature": 0.0}
    assert with_lengths(settings, ServeConfig(max_output_tokens=16), 512).default_max_tokens == 16
