"""The batches and the loss of a pipeline, without one. With one: ``tests/parallel/test_pipeline_training.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.models import load_model
from paddlesft.models.decoders import decoder_of
from paddlesft.training import pipeline_passes
from paddlesft.training.loss import IGNORED, hidden_states, supervised_loss, trained_token_losses
from paddlesft.training.pipeline_passes import PipelinePasses, _of_rows, _StageLoss


def batch(rows: int) -> dict[str, np.ndarray]:
    ids = np.arange(3, 3 + rows * 4).reshape(rows, 4)
    labels = np.where(ids % 4 > 1, ids + 1, IGNORED)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}


def test_rows_are_filled_up_with_rows_that_train_nothing() -> None:
    full = _of_rows(batch(1), 3)
    assert {key: value.shape for key, value in full.items()} == dict.fromkeys(full, (3, 4))
    np.testing.assert_array_equal(full["labels"][:1], batch(1)["labels"])
    assert (full["labels"][1:] == IGNORED).all() and (full["input_ids"] == batch(1)["input_ids"]).all()
    assert _of_rows(full, 3) is full


def test_steps_are_filled_up_to_what_the_schedule_wants() -> None:
    passes = object.__new__(PipelinePasses)
    passes.pipeline = type("Pipeline", (), {"micro_batch_size": 2, "accumulate_steps": 4})
    filled = passes._filled([batch(2), batch(1)])
    assert [(one["labels"] != IGNORED).sum() for one in filled] == [4, 2, 0, 0]
    assert {one["input_ids"].shape for one in filled} == {(2, 4)}


@pytest.fixture
def loss(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    model = load_model(tiny_llama)
    monkeypatch.setattr(pipeline_passes, "head_of", decoder_of)
    return _StageLoss(model), model


def test_loss_is_the_sum_over_trained_tokens_times_a_factor(loss: Any) -> None:
    stage, model = loss
    stage.train(factor=0.25)
    found = stage(hidden_states(model, batch(2)), paddle.to_tensor(batch(2)["labels"]))
    assert found.dtype == paddle.float32
    np.testing.assert_allclose(float(found), 0.25 * float(supervised_loss(model, batch(2)).loss_sum), rtol=1e-6)


def test_rows_that_train_nothing_leave_zero_gradients(loss: Any) -> None:
    stage, model = loss
    stage.train(factor=1.0)
    found = stage(hidden_states(model, batch(1)), paddle.full([1, 4], IGNORED, dtype="int64"))
    found.backward()
    assert float(found) == 0
    gradient = model.lm_head.weight.grad
    assert gradient is not None and not gradient.any()  # there, as on ranks that wait for it


def test_evaluation_keeps_what_it_finds(loss: Any) -> None:
    stage, model = loss
    stage.evaluate()
    with paddle.no_grad():
        stage(hidden_states(model, batch(2)), paddle.to_tensor(batch(2)["labels"]))
        stage(hidden_states(model, batch(1)), paddle.full([1, 4], IGNORED, dtype="int64"))
    (losses, correct), nothing = stage.scores
    wanted, wanted_correct = trained_token_losses(model, batch(2))
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    assert correct == wanted_correct and len(nothing[0]) == nothing[1] == 0
