"""Which way of running a model step by step is taken: one interface for models in memory and static graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import paddle

from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.eager import EagerRunner
from paddlesft.inference.step_model import EagerModel, StepModel
from paddlesft.models.steps import step_refusal


class Runner(Protocol):
    """One batch of replies; see ``CachedRunner``."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Run the prompts; return logits [b, v]."""

    def step(self, tokens: np.ndarray) -> Any:
        """Add one token to each row; return logits [b, v]."""

    def keep(self, indices: Sequence[int]) -> None:
        """Drop rows that are finished."""


def runner_of(model: paddle.nn.Layer | StepModel, pad_token_id: int = 0) -> Runner:
    """Return what runs a new batch.

    Args:
        model: a model of paddlenlp in evaluation mode, bare or with its adapter, or a static graph.
        pad_token_id: any valid id; it fills shorter rows and is masked.
    """
    if isinstance(model, paddle.nn.Layer):
        if step_refusal(model):
            return EagerRunner(model, pad_token_id)
        model = EagerModel(model, pad_token_id)
    return CachedRunner(model)
