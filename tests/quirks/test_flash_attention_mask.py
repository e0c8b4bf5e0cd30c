"""Flash attention in PaddleNLP's LLaMA and Qwen2, as it is and mended. On CPU it computes by plain matrix products."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from paddlenlp.transformers.llama import fusion_ops

from tests.models.decoders import proofs

TOLERANCE = 1e-5  # of logits that are 2 to 5 large


@pytest.fixture(params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> Any:
    return proofs.small(request.param, use_flash_attention=True)


def test_paddlenlp_still_loses_the_mask(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, drop the half of the quirk that is about ``is_causal``."""
    monkeypatch.setattr(fusion_ops, "no_recompute", fusion_ops.no_recompute.original)
    assert proofs.padded_against_alone(model, "left") > 0.1


def test_paddlenlp_still_takes_the_mask_of_a_single_query_for_causal(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, drop the half of the quirk that is about ``is_casual_mask``."""
    module = sys.modules[type(model).__module__]
    monkeypatch.setattr(module, "is_casual_mask", module.is_casual_mask.original)
    assert proofs.steps_against_full(model) > 0.1


def test_mended_it_keeps_padding_and_packed_rows_apart(model: Any) -> None:
    assert proofs.padded_against_alone(model, "left") < TOLERANCE
    assert proofs.padded_against_alone(model, "right") < TOLERANCE
    assert proofs.steps_against_full(model) < TOLERANCE
    assert proofs.packed_against_separate(model) < TOLERANCE


def test_mended_it_computes_what_plain_attention_does_behind_a_prefix_too(model: Any) -> None:
    tuned, row = proofs.with_prefix(model), proofs.rows_of(12)[0]
    assert proofs.padded_against_alone(tuned, "left") < TOLERANCE
    assert proofs.steps_against_full(tuned) < TOLERANCE
    assert proofs.packed_against_separate(tuned) < TOLERANCE
    found = proofs.logits_alone(tuned, row)
    model.config.use_flash_attention = False
    np.testing.assert_allclose(found, proofs.logits_alone(tuned, row), atol=TOLERANCE)
