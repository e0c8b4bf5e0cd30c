"""The garbage collector rests while the large packages are imported, and works as before afterwards."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from paddlesft.quirks.garbage_of_imports import without_collector

REPO = Path(__file__).resolve().parents[2]

COUNTED = """
import gc, json, sys
first, then = sys.argv[1:]
searches = []
gc.callbacks.append(lambda phase, info: searches.append(info["generation"]) if phase == "stop" else None)
__import__(first)
searches.clear()
__import__(then)
print(json.dumps([len(searches), gc.isenabled(), gc.get_freeze_count()]))
"""


def searches_during(first: str, package: str) -> tuple[int, bool, int]:
    """Import two packages in a fresh process; return the searches during the second, and the state after it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COUNTED, first, package],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def test_paddlenlp_is_imported_without_searches() -> None:
    searches, enabled, frozen = searches_during("paddlesft", "paddlenlp")
    assert searches < 10  # one before the package, and the first ones after it
    assert enabled
    assert frozen > 100_000


def test_python_alone_searches_hundreds_of_times() -> None:
    """Fails once paddlenlp imports little, or Python searches less: then this workaround can go."""
    searches, _, _ = searches_during("os", "paddlenlp")
    assert searches > 300


class _Loop:
    def __init__(self) -> None:
        self.self = self


def test_what_was_garbage_before_is_freed() -> None:
    gc.disable()
    try:
        gone = weakref.ref(_Loop())
        gc.enable()
        with without_collector():
            assert gone() is None
            assert not gc.isenabled()
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        frozen = gc.get_freeze_count()
        with without_collector():
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count() == frozen
    finally:
        gc.enable()


def test_an_import_that_fails_leaves_it_on() -> None:
    try:
        with pytest.raises(ImportError), without_collector():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
