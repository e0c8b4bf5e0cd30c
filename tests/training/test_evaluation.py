import math

import numpy as np
import pytest

from paddlesft.data.collate import Collator
from paddlesft.training.evaluation import EvaluationSums, evaluate_sums, evaluation_batches, number_of_batches
from paddlesft.training.loss import trained_token_losses
from tests.training.small_runs import batch_of, small_dataset, small_model


def sums(model, dataset, batch_size: int, limit: int = -1, **options) -> EvaluationSums:
    return evaluate_sums(model, evaluation_batches(dataset, Collator(0), batch_size), limit, **options)


def test_sums_equal_those_of_the_rows_whatever_the_batch_size() -> None:
    model, dataset = small_model(), small_dataset(9)
    losses = [trained_token_losses(model, batch_of(dataset, [i])) for i in range(9)]
    total = float(np.concatenate([loss for loss, _ in losses]).astype("float64").sum())
    for size in (1, 4, 9):
        found = sums(model, dataset, size)
        assert found.loss_sum == pytest.approx(total, rel=1e-6)
        assert (found.tokens, found.rows) == (sum(len(loss) for loss, _ in losses), 9)
        assert found.correct == sum(correct for _, correct in losses)


def test_metrics_have_the_prefix_and_perplexity_is_exp_of_the_loss() -> None:
    metrics = EvaluationSums(loss_sum=30.0, tokens=10, correct=4, rows=2).metrics("eval")
    assert metrics == {"eval_loss": 3.0, "eval_perplexity": math.exp(3.0), "eval_accuracy": 0.4, "eval_tokens": 10}
    assert "test_accuracy" not in EvaluationSums(1.0, 1).metrics("test", accuracy=False)
    assert math.isfinite(EvaluationSums(1e9, 1).metrics("eval")["eval_perplexity"])
    assert EvaluationSums().metrics("eval")["eval_loss"] == 0.0


def test_long_rows_come_first_and_ranks_share_them() -> None:
    dataset = small_dataset(9)
    widths = [batch["input_ids"].shape[1] for _, batch in evaluation_batches(dataset, Collator(0), 2)]
    assert widths == sorted(widths, reverse=True) and len(widths) == 5 == number_of_batches(9, 2, 1, -1)
    shared = [list(evaluation_batches(dataset, Collator(0), 2, rank, 2)) for rank in (0, 1)]
    assert sum(rows for part in shared for rows, _ in part) == 9
    assert number_of_batches(9, 2, 2, -1) == 3 and number_of_batches(9, 2, 1, 2) == 2


def test_it_can_stop_early_tells_its_progress_and_restores_the_mode() -> None:
    model, dataset, done = small_model(), small_dataset(9), []
    for mode in (model.train, model.eval):
        mode()
        before = model.training
        assert sums(model, dataset, 2, limit=2, on_batch=done.append).rows == 4
        assert model.training is before
    assert done == [1, 2, 1, 2]


def test_no_gradients_are_kept() -> None:
    model = small_model()
    sums(model, small_dataset(3), 3)
    assert all(p.grad is None for p in model.parameters())
