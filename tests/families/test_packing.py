"""Packed rows train what the same rows train apart; families where they would not are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.errors import ConfigError
from paddlesft.models import families
from paddlesft.models.families import FAMILIES
from paddlesft.training.events import Observer, Plan
from paddlesft.training.run_log import read_log
from tests.families.tuning_runs import METHODS, OTHER_ROWS, cases, run, write_rows

PACKING = [family.name for family in FAMILIES if family.packing]


class RowCount(Observer):
    """Remembers how many rows a run has; a pack counts as one."""

    def plan(self, plan: Plan) -> None:
        self.rows = plan.rows


@pytest.mark.parametrize(("family", "method"), [case for case in cases() if case[0] in PACKING])
def test_packed_rows_have_the_loss_of_single_rows(
    family: str, method: str, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    data, rows, losses = write_rows(tmp_path / "rows.json", OTHER_ROWS), {}, {}
    for packing in ("true", "false"):
        counted, output = RowCount(), tmp_path / packing
        keys = [*METHODS[method], "max_steps=2", "logging_steps=1", "learning_rate=1e-3", f"packing={packing}"]
        run(tiny_family(family), data, output, *keys, observer=counted)
        rows[packing] = counted.rows
        losses[packing] = [record["loss"] for record in read_log(output) if record["kind"] == "train"]
    assert rows["true"] < rows["false"] == len(OTHER_ROWS)
    assert losses["true"] == pytest.approx(losses["false"], abs=1e-5)  # the second one after an equal step


def test_a_family_without_packing_says_why(
    tiny_family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "its attention takes no mask"
    rows = [dataclasses.replace(row, packing=False, packing_refusal=reason) for row in FAMILIES]
    monkeypatch.setattr(families, "FAMILIES", tuple(rows))
    data = write_rows(tmp_path / "rows.json", OTHER_ROWS)
    with pytest.raises(ConfigError, match=reason) as caught:
        run(tiny_family("gpt"), data, tmp_path / "run", "packing=true", "max_steps=1")
    assert "family gpt" in str(caught.value) and "length_grouping: true" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_family_that_cannot_pack_has_a_reason() -> None:
    assert [row.name for row in FAMILIES if bool(row.packing_refusal) == row.packing] == []
