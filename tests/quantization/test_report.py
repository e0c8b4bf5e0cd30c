"""The report: its numbers by hand, its file, its gate."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from paddlesft.quantization.quantize_layer import LinearResult
from paddlesft.quantization.report import Measured, Quality, QuantReport, logit_difference
from paddlesft.quantization.sizes import Sizes


def report(before: float | None = 10.0, after: float = 10.3, errors: tuple[float, ...] = (0.1,)) -> QuantReport:
    def measured(perplexity: float | None, disk: int) -> Measured:
        quality = None if perplexity is None else Quality(perplexity, 0.5, 100, 7)
        return Measured(quality, Sizes(disk, 2 * disk, {"norms": disk}, {"norms": 2 * disk}))

    layers = [LinearResult(f"layers.{i}", "int8", error, 0.0, 40, 11) for i, error in enumerate(errors)]
    return QuantReport(
        Path("out"), "weight_only_int8", "rounding", measured(before, 1000),
        measured(None if before is None else after, 300), 0.02, 0.9, layers, {"rows": 3}, ["dev.json"], 1.26, 2, 99,
    )  # fmt: skip


def test_logit_difference_by_hand() -> None:
    before = [np.array([[3.0, 0.0], [0.0, 4.0]], np.float32), np.array([[0.0, 12.0]], np.float32)]
    after = [np.array([[3.0, 5.0], [0.0, 4.0]], np.float32), np.array([[0.0, 12.0]], np.float32)]
    error, same = logit_difference(before, after)
    assert error == pytest.approx(5 / 13) and same == pytest.approx(2 / 3)
    assert logit_difference(before, before) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("after", "most", "exceeds"),
    [(10.3, 0.02, True), (10.3, 0.04, False), (9.0, 0.0, False), (10.3, None, False), (math.nan, 9.0, True),
     (math.inf, 9.0, True)],
)  # fmt: skip
def test_the_gate(after: float, most: float | None, exceeds: bool) -> None:
    assert report(after=after).exceeds(most) is exceeds


def test_without_rows_nothing_is_compared() -> None:
    found = report(before=None)
    assert found.perplexity_increase is None and not found.exceeds(0.0)


def test_the_worst_layers_come_first() -> None:
    found = report(errors=tuple(i / 100 for i in range(12)))
    assert [one.name for one in found.worst] == [f"layers.{i}" for i in range(11, 1, -1)]


def test_layers_with_raised_damping_are_named(tmp_path: Path) -> None:
    found = report(errors=(0.1, 0.1, 0.1, 0.1))
    for one, damping in zip(found.layers, (0.01, 0.1, 0.0, 1.0)):
        one.damping = damping
    assert [one.name for one in found.damped] == ["layers.3", "layers.1"]
    found.write(tmp_path)
    content = json.loads((tmp_path / "quant_report.json").read_text(encoding="utf-8"))
    assert content["damped"] == ["layers.3", "layers.1"] and content["layers"][3]["damping"] == 1.0


def test_the_file(tmp_path: Path) -> None:
    report().write(tmp_path)
    found = json.loads((tmp_path / "quant_report.json").read_text(encoding="utf-8"))
    assert found["perplexity_increase"] == pytest.approx(0.03)
    assert found["before"]["quality"] == {"perplexity": 10.0, "accuracy": 0.5, "tokens": 100, "rows": 7}
    assert found["after"]["sizes"] == {
        "disk": 300, "memory": 600, "disk_of": {"norms": 300}, "memory_of": {"norms": 600},
    }  # fmt: skip
    assert found["layers"][0]["name"] == "layers.0" and found["worst"] == ["layers.0"] and found["damped"] == []
    assert found["run"] == {"seconds": 1.3, "layers_kept": 2, "peak_memory": 99}
    assert not {"output", "seconds"} & set(found)
