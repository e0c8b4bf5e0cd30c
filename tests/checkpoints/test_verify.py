"""The comparison says how far apart two models are, and cannot be passed by NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints.verify import RELATIVE_BOUND, compare_logits, compare_models, prompt_ids
from paddlesft.models import load_model, load_tokenizer


def test_numbers() -> None:
    a = [np.array([[0.0, 10.0], [4.0, -20.0]], np.float32)]
    b = [a[0] + np.array([[0.0, 0.0005], [0.0, 0.0]], np.float32)]
    found = compare_logits(a, b, "float32")
    assert found.max_abs_diff == pytest.approx(0.0005, rel=1e-2)
    assert found.bound == pytest.approx(RELATIVE_BOUND["float32"] * 20)
    assert (found.passed, found.same_top, found.tokens, found.prompts) == (True, 1.0, 2, 1)
    b[0][1] = [-5.0, 0.0]
    found = compare_logits(a, b, "float32")
    assert (found.passed, found.same_top) == (False, 0.5)
    assert "ABOVE the bound of 1.00e-03 for float32" in found.sentence()


def test_nan_is_never_equal() -> None:
    a = [np.ones((2, 3), np.float32)]
    assert not compare_logits(a, [np.full((2, 3), np.nan, np.float32)], "bfloat16").passed


def test_models(tiny_llama: Path) -> None:
    a, b = load_model(tiny_llama), load_model(tiny_llama)
    prompts = prompt_ids(load_tokenizer(tiny_llama), a.config.vocab_size)
    assert len(prompts) == 4 and compare_models(a, b, prompts).max_abs_diff == 0
    b.llama.norm.weight.set_value(b.llama.norm.weight * 1.01)
    assert not compare_models(a, b, prompts).passed


def test_prompts_without_tokenizer_are_the_same_each_time() -> None:
    rows = prompt_ids(None, 50)
    assert rows == prompt_ids(None, 50) and max(map(max, rows)) < 50
