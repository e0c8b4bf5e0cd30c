"""Figures: what is counted, under which names, and that strangers cannot make them grow."""

from __future__ import annotations

import re
import threading

import pytest

from paddlesft.inference.engine_requests import Finished, GenerationRequest, Piece, Ticket, TokenInfo
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.serving.metrics import Metrics, WatchedTicket
from paddlesft.serving.request_log import RequestRecord, enter


def value(metrics: Metrics, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics.text().decode(), re.M)
    assert found, f"{name} is not in\n{metrics.text().decode()}"
    return float(found[1])


def ticket() -> Ticket:
    return Ticket(GenerationRequest([1, 2], SamplingOptions()), threading.Condition())


def test_requests_are_counted_by_path_and_status_and_unknown_paths_together() -> None:
    metrics = Metrics(["/known"])
    for path, status in (("/known", 200), ("/known", 429), ("/a", 404), ("/b", 404), ("/ready", 503)):
        metrics.answered(RequestRecord("id", "GET", path, status=status))
    assert value(metrics, 'paddlesft_requests_total{path="/known",status="200"}') == 1
    assert value(metrics, 'paddlesft_requests_total{path="other",status="404"}') == 2
    assert value(metrics, 'paddlesft_rejected_total{reason="queue_full"}') == 1
    assert value(metrics, 'paddlesft_request_seconds_count{path="known"}'.replace("known", "/known")) == 2
    text = metrics.text().decode()
    assert '"/a"' not in text and 'reason="not_ready"' not in text and "_created" not in text


def test_the_engines_figures_are_read_when_they_are_asked_for() -> None:
    from paddlesft.inference.engine_statistics import EngineStats

    metrics = Metrics([])
    assert "paddlesft_active_rows" not in metrics.text().decode()
    metrics.follow(
        lambda: EngineStats(
            active=3,
            waiting=2,
            kv_tokens_used=96,
            kv_tokens_limit=None,
            prompt_tokens=70,
            generated_tokens=11,
            steps=9,
            requests={},
            rejected=0,
            cached_tokens=40,
            failures=1,
            prefix_cache_tokens=33,
        )
    )
    told = {
        "active_rows": 3, "waiting_requests": 2, "kv_tokens": 96, "kv_tokens_limit": 0, "prompt_tokens_total": 70,
        "generated_tokens_total": 11, "steps_total": 9, "cached_tokens_total": 40, "model_failures_total": 1,
        "prefix_cache_tokens": 33,
    }  # fmt: skip
    assert {name: value(metrics, f"paddlesft_{name}") for name in told} == told


def test_a_reply_is_timed_and_told_to_the_log_of_its_request() -> None:
    metrics, record, plain = Metrics([]), RequestRecord("id"), ticket()
    enter(record)
    watched = WatchedTicket(plain, metrics, "tiny", log_text=True)
    enter(None)
    for text in ("He", "llo"):
        plain.put(Piece(text, (TokenInfo(5),)))
    plain.put(Finished("stop", "Hello", 2, 0, 3, None, 0.02, 0.3, 0.9))
    finished, tokens = watched.result()
    assert finished.text == "Hello" and len(tokens) == 2
    assert value(metrics, 'paddlesft_replies_total{finish_reason="stop",model="tiny"}') == 1
    assert value(metrics, "paddlesft_inter_token_seconds_count") == 1
    assert value(metrics, 'paddlesft_time_to_first_token_seconds_bucket{le="0.25"}') == 0
    assert value(metrics, 'paddlesft_time_to_first_token_seconds_bucket{le="0.5"}') == 1
    assert value(metrics, 'paddlesft_queue_seconds_bucket{le="0.025"}') == 1
    assert record.facts == {
        "model": "tiny", "finish_reason": "stop", "prompt_tokens": 2, "generated_tokens": 3, "reply": "Hello",
    }  # fmt: skip


@pytest.mark.parametrize("log_text", [False, True])
def test_a_cancelled_reply_is_counted_once_and_its_text_only_logged_when_asked(log_text: bool) -> None:
    metrics, record, plain = Metrics([]), RequestRecord("id"), ticket()
    enter(record)
    watched = WatchedTicket(plain, metrics, "tiny", log_text)
    enter(None)
    watched.cancel()
    assert plain.cancelled and watched.cancelled
    plain.put(Finished("cancelled", "secret", 2))
    watched.result()
    assert value(metrics, 'paddlesft_replies_total{finish_reason="cancelled",model="tiny"}') == 1
    assert ("secret" in record.line()) == log_text
