"""Recomputed layers train what kept ones train, by every family and method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.training.run_log import read_log
from tests.families.tuning_runs import METHODS, OTHER_ROWS, cases, run, write_rows


@pytest.mark.parametrize(("family", "method"), cases())
def test_recompute_changes_no_loss(
    family: str, method: str, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    data, losses = write_rows(tmp_path / "rows.json", OTHER_ROWS), {}
    for recompute in ("true", "false"):
        output = tmp_path / recompute
        keys = [*METHODS[method], "max_steps=3", "logging_steps=1", "learning_rate=1e-2", f"recompute={recompute}"]
        run(tiny_family(family), data, output, *keys)
        losses[recompute] = [record["loss"] for record in read_log(output) if record["kind"] == "train"]
    assert losses["true"] == pytest.approx(losses["false"], abs=1e-4)
    assert abs(losses["true"][0] - losses["true"][2]) > 1e-3  # the steps between changed something
