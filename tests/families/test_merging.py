"""A merged model computes what its adapter computes: by the merge's own proof, and compared anew here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints.merge_lora import merge_lora
from paddlesft.checkpoints.verify import logits_of
from paddlesft.inference.loading import load_for_inference
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models.families import FAMILIES
from tests.families.tuning_runs import TuningRun, answers


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_a_merged_model_equals_its_adapter(
    family: str, tuning_run: Callable[[str, str], TuningRun], tmp_path: Path
) -> None:
    tuned = tuning_run(family, "lora")
    report = merge_lora(None, tuned.directory, tmp_path / "merged")
    assert report.comparison.passed and report.base_check == "matches" and report.notices == []
    assert report.effect > 1  # the adapter has learned other rows than its base
    merged, base = load_for_inference(tmp_path / "merged"), load_for_inference(tuned.base)
    prompts = tuned.prompts()
    with_adapter = logits_of(tuned.loaded.model, prompts)
    for expected, found, plain in zip(with_adapter, logits_of(merged.model, prompts), logits_of(base.model, prompts)):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)
        assert np.abs(plain - expected).max() > 1
    replies = answers(merged, prompts, SamplingOptions(max_new_tokens=48))
    assert [reply.text for reply in replies] == list(tuned.rows.values())
