"""What the check of a graph calls equal, a tie, and a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.export.check import GraphDiffers, Prompt, check_graph, compare_with, replies_of
from paddlesft.inference.generation import generate
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.inference.step_model import EagerModel
from paddlesft.models import load_model

PROMPTS = [Prompt("three tokens", [11, 12, 13]), Prompt("nine tokens", [900, 5, 77, 402, 8, 1200, 17, 30, 2])]


class Altered:
    """A step model whose logits are changed by ``change(logits, call)``."""

    def __init__(self, model: EagerModel, change: Any) -> None:
        self.config, self.cache_shape, self.prefixes, self.inputs = (
            model.config, model.cache_shape, model.prefixes, model.inputs,
        )  # fmt: skip
        self._model, self._change, self._calls = model, change, 0

    def __call__(self, inputs: Any, cache: Any) -> tuple[Any, Any]:
        logits, new = self._model(inputs, cache)
        self._calls += 1
        return self._change(logits.numpy().copy(), self._calls), new


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return load_model(tiny_llama)


@pytest.fixture(scope="module")
def replies(model: Any) -> list:
    return replies_of(model, PROMPTS, 4)


def test_equal_models_are_equal(model: Any) -> None:
    report = check_graph(EagerModel(model), model, PROMPTS, 5)
    assert report.faults == [] and report.ties == 0
    assert [(one.equal, one.new_tokens, one.prompt_tokens) for one in report.prompts] == [(5, 5, 3), (5, 5, 9)]
    assert 0 < report.max_difference < report.bound < 1e-3 < report.largest_logit
    report.refuse_faults()
    assert report.facts()["equal_tokens"] == 10


def test_the_truth_is_what_greedy_search_generates(model: Any, replies: list) -> None:
    generated = generate(model, [prompt.ids for prompt in PROMPTS], SamplingOptions(max_new_tokens=4))
    assert [reply.tokens for reply in replies] == [reply.token_ids for reply in generated]


@pytest.mark.parametrize("value", [0.01, np.nan])
def test_other_logits_are_a_fault_that_names_prompt_and_position(model: Any, replies: list, value: float) -> None:
    def change(logits: np.ndarray, call: int) -> np.ndarray:
        if call == 3:  # the third token of the batch
            logits[1, 5] += value
        return logits

    report = compare_with(Altered(EagerModel(model), change), replies)
    assert report.prompts[0].fault == "" and len(report.faults) == 1
    with pytest.raises(GraphDiffers) as caught:
        report.refuse_faults()
    assert caught.value.exit_code == 1
    text = str(caught.value)
    assert 'prompt "nine tokens" (9 tokens) in a batch, new token 3 of 4: the model takes ' in text
    assert f"largest logit difference {'inf' if value != value else '1.00e-02'}, allowed" in text


def test_another_token_is_a_fault_unless_both_are_as_likely(model: Any, replies: list) -> None:
    def prefer(gap: float) -> Any:
        def change(logits: np.ndarray, call: int) -> np.ndarray:
            wanted = replies[0].tokens[0]
            if call in (1, 5):  # the first token, in the batch and alone
                logits[0, wanted + 1] = logits[0, wanted] + gap
            return logits

        return change

    report = compare_with(Altered(EagerModel(model), prefer(0.1)), replies, share=1e-5)
    assert "three tokens" in report.faults[0] and "the model takes" in report.faults[0]
    near = [reply.logits.copy() for reply in replies]
    near[0][0, replies[0].tokens[0] + 1] = near[0][0].max() - 1e-5
    almost = [type(replies[0])(reply.prompt, reply.tokens, logits) for reply, logits in zip(replies, near)]
    report = compare_with(Altered(EagerModel(model), prefer(1e-5)), almost)
    assert report.faults == []
    assert (report.ties, report.prompts[0].ties, report.prompts[0].equal) == (1, 1, 3)
