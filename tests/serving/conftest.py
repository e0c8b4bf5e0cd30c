"""One server with a tiny model for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.running import RunningServer, running


@pytest.fixture(scope="session")
def tiny_server(tiny_llama: Path) -> Iterator[RunningServer]:
    with running(tiny_llama) as server:
        yield server
