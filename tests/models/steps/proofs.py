"""What has to be true of a family's step, as functions of a small model; the tests call them for each family.

The truth is ``EagerRunner``: PaddleNLP's own layers over a cache that they put together themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.eager import EagerRunner
from paddlesft.inference.step_model import EagerModel, StepModel
from tests.models.decoders import proofs


def prompts_of(model: Any, *lengths: int) -> list[list[int]]:
    """Random prompts, in the form that the family reads."""
    from paddlesft.models.decoders import decoder_of

    return [decoder_of(model).as_prompt(row) for row in proofs.rows_of(*lengths)]


def logits_of(runner: Any, prompts: Sequence[Sequence[int]], steps: int = 5, leave_at: int = 2) -> list[np.ndarray]:
    """Run prompts and random tokens behind them; every second row leaves behind ``leave_at`` steps."""
    draw = np.random.default_rng(1)
    rows = list(range(len(prompts)))
    found = [np.asarray(runner.prefill(prompts))]
    for step in range(steps):
        if step == leave_at and len(rows) > 1:
            runner.keep(list(range(0, len(rows), 2)))
            rows = rows[::2]
        tokens = draw.integers(5, proofs.VOCABULARY - 1, len(prompts))[rows]
        found.append(np.asarray(runner.step(tokens)))
    return found


def difference(model: Any, step_model: StepModel | None = None, lengths: Sequence[int] = (3, 9, 6, 1)) -> float:
    """Return the largest difference between the logits of a step and of PaddleNLP's forward pass.

    Args:
        model: in evaluation mode, bare or with its adapter.
        step_model: what computes the step; None: the model itself, eagerly.
        lengths: of the prompts.
    """
    prompts = prompts_of(model, *lengths)
    wanted = logits_of(EagerRunner(model, proofs.PADDING), prompts)
    found = logits_of(CachedRunner(step_model or EagerModel(model, proofs.PADDING)), prompts)
    assert np.ptp(wanted[-1]) > 0.1
    return max(float(np.abs(one - other).max()) for one, other in zip(wanted, found))
