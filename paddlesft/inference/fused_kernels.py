"""PaddleNLP's fused kernels for inference (the key ``inference_model``): why a run goes without them."""

from __future__ import annotations

import importlib.util

PACKAGE = "paddlenlp_ops"


def about_fused_kernels(device: str) -> str:
    """Say in one line why the model runs without PaddleNLP's fused kernels, whatever is installed.

    Args:
        device: that the run uses, ``cpu`` or ``gpu:0``.
    """
    if not device.startswith("gpu"):
        why = f"PaddleNLP's fused kernels run on GPUs, and this run uses {device}"
    elif importlib.util.find_spec(PACKAGE) is None:
        why = f"PaddleNLP's fused kernels are in the package {PACKAGE}, which is not installed"
    else:
        why = "PaddleNLP's fused models draw tokens in a loop of their own, without a seed for each row"
    return f"inference_model: {why}; the model runs the usual way."
