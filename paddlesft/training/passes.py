"""Forward and backward passes of one rank: which rows go through which layers is decided here, and nothing else.

The trainer counts tokens, normalises and logs; the optimizer belongs to PaddleNLP's loop. How a batch gets through the
model depends on how the model is divided. ``Passes`` serves whole models and tensor parallelism, whose layers talk to
each other by themselves; layouts that need more have a subclass in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import paddle

from paddlesft.training.loss import supervised_loss, trained_token_losses
from paddlesft.training.ranks import sum_sequence_gradients


class Passes:
    """Runs batches through a model that every rank calls on its own.

    Args:
        model: the model being trained, bare or with an adapter.
        precision: context in which it runs (mixed precision).
        scale: turns a loss into what ``backward`` is called on (loss scaling).
    """

    def __init__(
        self,
        model: paddle.nn.Layer,
        precision: Callable[[], AbstractContextManager[Any]],
        scale: Callable[[paddle.Tensor], paddle.Tensor],
    ) -> None:
        self.model = model
        self.precision = precision
        self.scale = scale

    def step(self, batches: Sequence[Mapping[str, Any]], factor: float) -> float:
        """Run the micro-batches of one optimizer step forward and backward; gradients add up in the parameters.

        Args:
            batches: collated micro-batches of this rank.
            factor: what the summed loss is multiplied with before ``backward``.

        Returns:
            The summed loss of this rank's trained tokens (nats), without the factor.
        """
        total = 0.0
        for batch in batches:
            with self.precision():
                loss = self.loss_sum(batch) * factor
            self.backward(loss)
            total += float(loss) / factor
        sum_sequence_gradients(self.model.parameters())
        return total

    def loss_sum(self, batch: Mapping[str, Any]) -> paddle.Tensor:
        """Compute the summed loss of a batch's trained tokens (nats), through which gradients flow."""
        return supervised_loss(self.model, batch).loss_sum

    def backward(self, loss: paddle.Tensor) -> None:
        """Run the backward pass of a micro-batch."""
        self.scale(loss).backward()

    def score(self, batch: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        """Score the trained tokens of one batch without gradients; see ``loss.trained_token_losses``."""
        with self.precision():
            return trained_token_losses(self.model, batch)

    def whole_model(self) -> AbstractContextManager[None]:
        """While this is open, layers may be called as often as each rank likes, as generation does."""
        return nullcontext()
