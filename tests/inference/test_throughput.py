"""Counts, rates and latencies against sums made by hand."""

from __future__ import annotations

import pytest

from paddlesft.inference.throughput import Stopwatch, Throughput


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("paddlesft.inference.throughput.time.perf_counter", lambda: now[0])
    return now


def test_requests_are_timed_apart_within_a_batch(clock: list[float]) -> None:
    total, watch = Throughput(), Stopwatch()
    for second, rows in ((2.0, (0, 1)), (2.5, (0, 1)), (3.0, (1,))):
        clock[0] = second
        for row in rows:
            watch.token(row)
    watch.stop(total, prompt_tokens=10, generated_tokens=5, replies=2)
    assert (total.prompt_seconds, total.decode_seconds) == (2.0, 1.0)
    assert (total.first_token_seconds, total.reply_seconds) == ([2.0, 2.0], [2.5, 3.0])
    assert (total.prompt_rate, total.generated_rate) == (5.0, 3.0)
    assert (total.tokens_per_second, total.requests_per_second) == (5 / 3, 2 / 3)
    assert str(total) == "2 replies in 3.0 s: 10 prompt tokens at 5 tokens/s, 5 generated at 3.0 tokens/s"
    assert total.latency() == "Seconds from a request to its first token: 2.00; to its last: 2.50 to 3.00"


def test_many_requests_are_told_by_percentiles() -> None:
    seconds = [float(number) for number in range(1, 102)]
    total = Throughput(101, 101, 202, 1.0, 1.0, [0.5] * 101, seconds[::-1])
    assert total.facts()["seconds_to_last_token"] == {"p50": 51.0, "p90": 91.0, "p99": 100.0}
    assert total.latency().endswith("first token: p50 0.50, p90 0.50, p99 0.50; to its last: p50 51.00, p90 91.00, "
                                    "p99 100.00")  # fmt: skip


def test_nothing_measured_is_no_error() -> None:
    facts = Throughput().facts()
    assert facts["seconds_to_first_token"] == {"p50": None, "p90": None, "p99": None} and facts["ips"] == 0.0
    assert Throughput().latency() == ""
