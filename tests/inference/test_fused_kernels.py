"""What is said about PaddleNLP's fused kernels, by what is there."""

from __future__ import annotations

import importlib.util

import pytest

from paddlesft.inference.fused_kernels import about_fused_kernels


@pytest.mark.parametrize(
    ("device", "installed", "reason"),
    [
        ("cpu", True, "PaddleNLP's fused kernels run on GPUs, and this run uses cpu"),
        ("gpu:1", False, "PaddleNLP's fused kernels are in the package paddlenlp_ops, which is not installed"),
        ("gpu:0", True, "PaddleNLP's fused models draw tokens in a loop of their own, without a seed for each row"),
    ],
)
def test_one_line_says_why_they_are_not_used(
    device: str, installed: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert about_fused_kernels(device) == f"inference_model: {reason}; the model runs the usual way."
