"""How replies end when the server stops: by themselves where there is time, else with an error that says why."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.running import running

LONG = {"max_tokens": 150, "logit_bias": {"2": -100}, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
CASES = [
    ("/v1/chat/completions", LONG),
    ("/v1/chat/completions", LONG | {"stream": False}),
    ("/api/chat", {"context": "Hi", "max_length": 150, "min_length": 150, "stream": True}),
    ("/api/chat", {"context": "Hi", "max_length": 150, "min_length": 150}),
]


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_every_kind_of_reply_has_an_end(tiny_llama: Path, seconds: float) -> None:
    answers: list[Any] = [None] * len(CASES)
    with running(tiny_llama) as server:

        def ask(number: int) -> None:
            path, body = CASES[number]
            answers[number] = httpx.post(server.url + path, json=body, timeout=60)

        threads = [threading.Thread(target=ask, args=[number]) for number in range(len(CASES))]
        for thread in threads:
            thread.start()
        while server.engine.stats().active < len(CASES):
            assert any(thread.is_alive() for thread in threads)
        server.front.drain()
        refused = httpx.post(server.url + "/api/chat", json=CASES[3][1])
        assert refused.status_code == 503 and refused.json()["error_code"] == 1000
        assert server.engine.drain(seconds) == (seconds > 0)
        assert server.front.wait_until_quiet(10)
        for thread in threads:
            thread.join()
    events, whole, lines, object_ = answers
    last = events.text.strip().split("\n\n")[-1].removeprefix("data: ")
    spoken = [json.loads(line) for line in lines.text.splitlines()]
    if seconds:
        assert last == "[DONE]" and whole.json()["usage"]["completion_tokens"] == 150
        assert all(line["error_code"] == 0 for line in spoken) and object_.json()["error_code"] == 0
        return
    stopping = {"message": "The server is stopping.", "type": "server_error", "param": None, "code": "draining"}
    assert json.loads(last)["error"] == whole.json()["error"] == spoken[-1]["error"] == object_.json()["error"]
    assert whole.json()["error"] == stopping and whole.status_code == object_.status_code == 503
    assert spoken[0]["error_code"] == 0 and spoken[-1]["error_code"] == object_.json()["error_code"] == 1000
