"""A few hundred hostile requests; ``benchmarks/serving_fuzz.py`` sends thousands of the same kind."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings

from paddlesft.serving.settings import ServingSettings
from tests.serving.fuzzing import API_CHAT, BODIES, Sent, broken_http, exchange, judge, requests
from tests.serving.running import RunningServer, running

NO_REPLAY = settings(
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[RunningServer]:
    with running(tiny_llama, settings=ServingSettings(max_output_tokens=6, receive_seconds=10)) as server:
        yield server


@pytest.fixture(scope="module")
def address(server: RunningServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return parts.hostname, parts.port


def deep(depth: int) -> Sent:
    return Sent("POST", "/api/chat", b"[" * depth + b"]" * depth, {"Content-Type": "application/json"})


def test_nearly_right_requests_are_answered_or_refused_and_nothing_is_left_behind(
    server: RunningServer, address: tuple[str, int]
) -> None:
    statuses: Counter[int] = Counter()
    threads = threading.active_count()

    @settings(NO_REPLAY, max_examples=250)
    @example(deep(100_000))
    @given(requests())
    def send(sent: Sent) -> None:
        statuses[judge(exchange(address, sent.bytes()), sent.method, sent=sent.bytes())] += 1

    send()
    server.wait_until_idle()
    assert statuses[200] > 20 and statuses[400] > 50, statuses  # else the requests are not nearly right
    assert threading.active_count() <= threads
    for path, body in BODIES.items():
        assert httpx.post(server.url + path, json=body, timeout=30).status_code == 200


def test_bytes_that_are_nearly_http_do_no_harm(server: RunningServer, address: tuple[str, int]) -> None:
    statuses: Counter[int] = Counter()
    threads, process = threading.active_count(), psutil.Process()
    files = process.num_fds()

    @settings(NO_REPLAY, max_examples=80)
    @given(broken_http())
    def send(sent: tuple[bytes, str]) -> None:
        data, leave = sent
        answer = exchange(address, data, leave, seconds=0.2)  # the rest of an incomplete request is not waited for
        statuses[judge(answer, whole=False, sent=data)] += 1

    send()
    server.wait_until_idle()
    assert statuses[400] > 5 and statuses[0] > 5, statuses
    assert threading.active_count() <= threads
    end = time.monotonic() + 15
    while server.front.in_flight or process.num_fds() > files:
        assert time.monotonic() < end, f"inside: {server.front.in_flight}, open files: {process.num_fds()}, {files}"
        time.sleep(0.05)
    assert httpx.post(f"{server.url}/api/chat", json=API_CHAT, timeout=30).json()["error_code"] == 0
