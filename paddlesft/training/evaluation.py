"""Loss, perplexity and token accuracy of a data set. Only sums are kept, so memory does not grow with the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from paddlesft.training.loss import trained_token_losses
from paddlesft.training.micro_batches import untrained_row
from paddlesft.training.ranks import sum_over_ranks

if TYPE_CHECKING:
    from paddlesft.data.dataset import SFTDataset

MAX_PERPLEXITY_EXPONENT = 700.0  # exp of more than this is no double


@dataclass
class EvaluationSums:
    """Sums over trained tokens.

    Attributes:
        loss_sum: cross entropy (nats).
        tokens: trained tokens.
        correct: tokens that the model gives the highest logit.
        rows: rows they come from.
    """

    loss_sum: float = 0.0
    tokens: int = 0
    correct: int = 0
    rows: int = 0

    @property
    def loss(self) -> float:
        """The mean loss of a trained token."""
        return self.loss_sum / max(self.tokens, 1)

    def metrics(self, prefix: str, accuracy: bool = True) -> dict[str, float]:
        """Return ``{prefix}_loss``, ``_perplexity``, ``_accuracy`` and ``_tokens``."""
        metrics = {
            f"{prefix}_loss": self.loss,
            f"{prefix}_perplexity": math.exp(min(self.loss, MAX_PERPLEXITY_EXPONENT)),
        }
        if accuracy:
            metrics[f"{prefix}_accuracy"] = self.correct / max(self.tokens, 1)
        return {**metrics, f"{prefix}_tokens": self.tokens}


def evaluation_batches(
    dataset: SFTDataset, collator: Callable[..., Mapping[str, Any]], batch_size: int, rank: int = 0, ranks: int = 1
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Give the batches of an evaluation, longest rows first: little padding, and memory runs out at once or never.

    All ranks get equally many: one that has run out of rows gets a row with nothing to score.

    Yields:
        The number of rows and the collated batch.
    """
    order = sorted(range(len(dataset)), key=lambda i: (-dataset.length(i), i))[rank::ranks]
    for begin in range(0, number_of_batches(len(dataset), batch_size, ranks, -1) * batch_size, batch_size):
        rows = [dataset[i] for i in order[begin : begin + batch_size]]
        yield len(rows), collator(rows or [untrained_row(dataset[0])])


def number_of_batches(rows: int, batch_size: int, ranks: int, limit: int) -> int:
    """Return how many batches the first rank evaluates; ``limit`` of -1 means all."""
    batches = math.ceil(math.ceil(rows / ranks) / batch_size)
    return min(batches, limit) if limit > 0 else batches


def evaluate_sums(
    model: paddle.nn.Layer,
    batches: Iterator[tuple[int, Mapping[str, Any]]],
    max_batches: int = -1,
    score: Callable[[Mapping[str, Any]], tuple[np.ndarray, int]] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> EvaluationSums:
    """Evaluate a model in evaluation mode, without gradients.

    Args:
        model: bare or with an adapter; left in the mode it came in.
        batches: see ``evaluation_batches``.
        max_batches: stop after this many on each rank; -1 for all.
        score: batch -> losses of its trained tokens, and how many are the most likely token; the model's own when None.
        on_batch: called with the number of batches done.

    Returns:
        The sums over all ranks.
    """
    sums = EvaluationSums()
    was_training = model.training
    model.eval()
    try:
        for number, (rows, batch) in enumerate(batches, start=1):
            losses, correct = trained_token_losses(model, batch) if score is None else score(batch)
            sums.loss_sum += float(losses.astype("float64").sum())
            sums.tokens += len(losses)
            sums.correct += correct
            sums.rows += rows
            if on_batch is not None:
                on_batch(number)
            if number == max_batches:
                break
    finally:
        if was_training:
            model.train()
    loss_sum, tokens, correct, rows = sum_over_ranks([sums.loss_sum, sums.tokens, sums.correct, sums.rows])
    return EvaluationSums(loss_sum, int(tokens), int(correct), int(rows))
