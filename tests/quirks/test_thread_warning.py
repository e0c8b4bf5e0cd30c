"""Paddle's advice against threads is not shown; everything else on stderr is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from paddlesft.quirks import thread_warning

REPO = Path(__file__).resolve().parents[2]


def stderr_of(code: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "2", **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stderr


def test_importing_paddle_is_silent() -> None:
    code = "import paddlesft, paddle, sys; print('own words', file=sys.stderr)"
    assert stderr_of(code).splitlines() == ["own words"]


def test_paddle_still_warns_by_itself() -> None:
    """Fails once paddle no longer warns: then this workaround can go."""
    said = stderr_of("import paddle")
    for line in thread_warning.DROPPED:
        assert line in said


def test_other_lines_pass() -> None:
    stream = io.StringIO()
    filtered = thread_warning._Filter(stream)
    print("before", file=filtered)
    print("WARNING: OMP_NUM_THREADS set to 8, not 1. The computation", file=filtered)
    print("PLEASE USE OMP_NUM_THREADS WISELY.", file=filtered)
    print("after", end="", file=filtered)
    filtered.flush()
    assert stream.getvalue() == "before\nafter"


def test_it_is_arranged_once() -> None:
    code = """
import paddlesft
from paddlesft.quirks import thread_warning
assert thread_warning.apply() is False
import paddle
assert thread_warning.apply() is False
"""
    stderr_of(code)
