"""Prompts in pieces: the same logits in less memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddlesft.inference import cached_runner
from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.step_model import EagerModel, StepInputs
from paddlesft.models.load import load_model
from tests.models.steps.proofs import logits_of, prompts_of


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> object:
    loaded = load_model(tiny_llama)
    loaded.eval()
    return loaded


class Watched(EagerModel):
    """Notes the shape of each call."""

    def __init__(self, model: object) -> None:
        super().__init__(model)
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, inputs: StepInputs, cache: object) -> object:
        self.calls.append(inputs.visible.shape)
        return super().__call__(inputs, cache)


def test_pieces_of_a_prompt_give_the_logits_of_the_whole(model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(model, 45, 3, 32, 33)
    wanted = logits_of(CachedRunner(EagerModel(model)), prompts)
    monkeypatch.setattr(cached_runner, "SCORES_BYTES", 1)
    monkeypatch.setattr(cached_runner, "SHORTEST_PIECE", 8)
    watched = Watched(model)
    found = logits_of(CachedRunner(watched), prompts)
    assert [shape[2] for shape in watched.calls[:7]] == [8, 8, 8, 8, 8, 5, 1]
    assert max(np.abs(one - other).max() for one, other in zip(wanted, found)) < 1e-4
    assert np.ptp(wanted[-1]) > 0.1


def test_a_piece_is_as_long_as_its_scores_may_be(model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = model.config.num_attention_heads
    monkeypatch.setattr(cached_runner, "SCORES_BYTES", 4 * 2 * heads * 100 * 40)
    watched = Watched(model)
    CachedRunner(watched).prefill(prompts_of(model, 100, 60))
    assert [shape[2] for shape in watched.calls] == [40, 40, 20]
    assert watched.calls[0][3] == 1 + 40  # no masked columns before there is something in the cache


def test_prompts_that_attend_in_both_directions_run_whole(model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_runner, "SCORES_BYTES", 1)
    watched = Watched(model)
    watched.inputs.whole_prompts = True
    CachedRunner(watched).prefill(prompts_of(model, 100))
    assert [shape[2] for shape in watched.calls] == [100]
