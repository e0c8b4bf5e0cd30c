"""Seconds of overload against ``paddlesft serve``; ``benchmarks/serving_soak.py`` goes on for minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_no_request_is_lost_at_overload(tiny_llama: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "serving_soak.py"), "--model", str(tiny_llama), "--seconds", "3"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith("ok\n")
    assert {"burst | refused", "leaves in the stream | left", "stream | complete", "whole | complete"} <= {
        line.strip("| ").rpartition(" | ")[0] for line in done.stdout.splitlines()
    }
    assert "code 0" in done.stdout


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import serving_soak

    return serving_soak


@pytest.mark.parametrize(
    ("kind", "answer", "stopping", "problem"),
    [
        ("stream", {"outcome": "cut", "status": 200}, False, "stream: cut"),
        ("stream", {"outcome": "unanswered"}, False, "stream: unanswered"),
        ("stream", {"outcome": "unanswered", "sent": 1.0}, True, "stream: unanswered"),
        ("stream", {"outcome": "unanswered", "sent": 3.0}, True, None),
        ("stream", {"outcome": "cut", "status": 200, "sent": 3.0}, True, "stream: cut"),
        ("stream", {"outcome": "stopping", "status": 503}, False, "stream: stopping"),
        ("stream", {"outcome": "stopping", "status": 503}, True, None),
        ("burst", {"outcome": "refused", "status": 429}, False, "burst: 429 without Retry-After"),
        ("burst", {"outcome": "refused", "status": 429, "headers": {"retry-after": "2"}}, False, None),
        ("bad request", {"outcome": "complete", "usage": {"completion_tokens": 1}}, False, "bad request: complete"),
        ("whole", {"outcome": "complete"}, False, "whole: complete, but without usage"),
    ],
)
def test_the_soak_sees_what_is_wrong(soak, kind: str, answer: dict, stopping: bool, problem: str | None) -> None:
    seen = soak.Soak()
    seen.saw(kind, soak.Answer(**answer), 2.0 if stopping else None)
    assert seen.requests == 1
    assert len(seen.wrong) == (problem is not None)
    assert problem is None or seen.wrong[0].startswith(problem)


@pytest.mark.parametrize(("grows", "problem"), [(None, None), ("memory", "memory grows"), ("threads", "threads grow")])
def test_the_soak_sees_what_grows(soak, grows: str | None, problem: str | None) -> None:
    seen = soak.Soak(memory=[500_000] * 30, threads=[20] * 30, files=[15] * 30)
    if grows is not None:
        setattr(seen, grows, [value * (1 + i / 15) for i, value in enumerate(getattr(seen, grows))])
    soak.check_bounded(seen)
    assert len(seen.wrong) == (problem is not None)
    assert problem is None or seen.wrong[0].startswith(problem)
