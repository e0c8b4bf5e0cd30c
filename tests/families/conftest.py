"""One training run for each family and method, shared by all tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.families.tuning_runs import TuningRun, tune


@pytest.fixture(scope="session")
def tuning_run(
    tiny_family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], TuningRun]:
    """Return the finished run of a family's tiny model by a method; adapters start from the fully tuned model."""
    root = tmp_path_factory.mktemp("tuned")

    @cache
    def finished(family: str, method: str) -> TuningRun:
        base = tiny_family(family) if method == "full" else finished(family, "full").directory
        return tune(base, method, root / f"{family}-{method}")

    return finished
