"""A file of learned rows is answered with their replies, by every family and method."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.inference.prediction import predict_file, read_rows
from paddlesft.inference.sampling import SamplingOptions
from tests.families.tuning_runs import PROMPT_TOKENS, TuningRun, cases


@pytest.mark.parametrize(("family", "method"), cases())
def test_a_prediction_file_holds_the_learned_replies(
    family: str, method: str, tuning_run: Callable[[str, str], TuningRun], tmp_path: Path
) -> None:
    tuned, output = tuning_run(family, method), tmp_path / "output.json"
    options = SamplingOptions(max_new_tokens=48)
    report = predict_file(tuned.loaded, read_rows(tuned.data), output, options, batch_size=3, src_length=PROMPT_TOKENS)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"src": src, "tgt": tgt, "output": tgt} for src, tgt in tuned.rows.items()]
    assert (report.rows, report.shortened, dict(report.finish_reasons)) == (len(lines), 0, {"stop": len(lines)})
