"""The label that PaddleNLP's GPT leaves out of its loss."""

from __future__ import annotations

import paddle
import pytest
from paddlenlp.transformers import GPTConfig
from paddlenlp.transformers.gpt.modeling import GPTPretrainingCriterion

from paddlesft.models.families import family_named

LABELS = paddle.to_tensor([[3, 0, -100]])


def loss(config: GPTConfig) -> float:
    logits = paddle.to_tensor([[[0.0, 1.0, 2.0, 3.0]] * 3])
    return float(GPTPretrainingCriterion(config)(logits, LABELS))


def test_upstream_still_ignores_token_0_and_fails_at_unlabelled_positions() -> None:
    """When this fails, paddlenlp has another default: remove the quirk."""
    assert GPTConfig().ignore_index == 0
    with pytest.raises(IndexError, match="received lbl:-100"):
        loss(GPTConfig())


def test_unlabelled_positions_are_left_out_and_token_0_counts() -> None:
    config = GPTConfig()
    family_named("gpt").fix_config(config)
    total = 1 + paddle.to_tensor([-1.0, -2.0, -3.0]).exp().sum()  # of the softmax, in units of the largest
    assert loss(config) == pytest.approx(float(total.log() + 3 / 2))  # tokens 3 and 0 are 0 and 3 below the largest
