"""The passes of a pipeline: Fleet's schedules with this project's loss.

All micro-batches of a step go through the stages at once (1F1B, or interleaved with virtual stages: arXiv:2104.04473).
Fleet wants exactly ``accumulate_steps`` micro-batches of one shape; where a step has fewer rows, rows that train
nothing take the places. Only the first stage looks at the inputs and only the last one at the labels, but all stages of
a pipeline read the same rows, and all learn the loss.

b rows, s tokens, h hidden size, n trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.distributed import fleet
from paddle.distributed.fleet.meta_parallel import PipelineParallel
from paddlenlp.peft import LoRAModel

from paddlesft.models.decoders.stage import head_of, stage_inputs
from paddlesft.models.pipeline import chunks_of, is_last_stage, recompute_layers
from paddlesft.training.loss import IGNORED, summed_loss, token_scores
from paddlesft.training.micro_batches import untrained
from paddlesft.training.passes import Passes
from paddlesft.training.ranks import sum_sequence_gradients
from paddlesft.tuning.prefix_model import PrefixModel, sum_over_stages

FIRST_STAGE_INPUTS = ("input_ids", "attention_mask", "position_ids")  # of classes that do not say what they take


class PipelinePasses(Passes):
    """Runs batches through the stages of a pipeline, of which this rank has one.

    Args:
        model: this rank's stage, bare or with an adapter.
        precision: context in which it runs (mixed precision).
        scaler: loss scaling; None for none.
        wrapped: Fleet's wrapper around the stage, where PaddleNLP's loop has made one.
    """

    def __init__(
        self,
        model: paddle.nn.Layer,
        precision: Callable[[], AbstractContextManager[Any]],
        scaler: paddle.amp.GradScaler | None = None,
        wrapped: PipelineParallel | None = None,
    ) -> None:
        super().__init__(model, precision, scale=lambda loss: loss)
        self.scaler = scaler
        self.stage = model.model if isinstance(model, LoRAModel | PrefixModel) else model
        self.pipeline = wrapped if wrapped is not None else fleet.distributed_model(self.stage)
        if not isinstance(self.stage._loss_fn[0], _StageLoss):
            self.stage._loss_fn = [_StageLoss(self.stage)]
        self._loss = self.stage._loss_fn[0]
        self._keep_trained_shares()
        self._let_gradients_pass()
        config = self.stage.config
        if config.recompute and config.recompute_granularity == "full":
            recompute_layers(self.stage)
        self._evaluated = False

    def step(self, batches: Sequence[Mapping[str, Any]], factor: float) -> float:
        pipeline = self.pipeline
        micro_batches = self._filled(batches)
        if self._evaluated:  # the stages remember which tensors need gradients, and evaluation had none
            pipeline._p2p_helper.clear_meta_cache()
            self._evaluated = False
        divided = 1 if pipeline._delay_scale_loss else pipeline.accumulate_steps
        self._loss.train(factor * divided)
        pipeline.train()
        pipeline.set_virtual_pipeline_rank(0)  # where the schedules begin
        with self.precision():
            total = pipeline.forward_backward_pipeline(self._inputs(micro_batches), self.scaler)
        sum_sequence_gradients(self.stage.parameters())
        sum_over_stages(self.model)
        if pipeline._delay_scale_loss:
            total = total * pipeline.accumulate_steps
        return float(total) / factor

    def score(self, batch: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        rows, size = len(batch["labels"]), self.pipeline.accumulate_steps * self.pipeline.micro_batch_size
        parts = [self._score({k: v[i : i + size] for k, v in batch.items()}) for i in range(0, rows, size)]
        return np.concatenate([losses for losses, _ in parts]), sum(correct for _, correct in parts)

    @paddle.no_grad()
    def _score(self, batch: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        pipeline, size = self.pipeline, self.pipeline.micro_batch_size
        rows = len(batch["labels"])
        micro_batches = self._filled([{k: v[i : i + size] for k, v in batch.items()} for i in range(0, rows, size)])
        pipeline._p2p_helper.clear_meta_cache()
        self._evaluated = True
        self._loss.evaluate()
        with self.precision():
            pipeline.eval_batch(self._inputs(micro_batches), compute_loss=True)
        tokens = int((np.asarray(batch["labels"]) != IGNORED).sum())
        found = np.zeros(tokens + 1, dtype=np.float32)  # and behind them, how many are the most likely
        if is_last_stage(self.stage):
            found[:-1] = np.concatenate([losses for losses, _ in self._loss.scores])
            found[-1] = sum(correct for _, correct in self._loss.scores)
        known = paddle.to_tensor(found)
        hybrid = fleet.get_hybrid_communicate_group()
        dist.broadcast(
            known, src=hybrid.get_rank_from_stage(self.stage._num_stages - 1), group=hybrid.get_pipe_parallel_group()
        )
        return known.numpy()[:-1], int(known[-1])

    def _filled(self, batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Fill up to as many micro-batches, of as many rows, as the schedule wants."""
        full = [_of_rows(batch, self.pipeline.micro_batch_size) for batch in batches]
        spare = untrained(full[-1])
        return full + [spare] * (self.pipeline.accumulate_steps - len(full))

    def _inputs(self, micro_batches: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return what Fleet cuts micro-batches out of: inputs of the first stage, labels for the last one."""
        if not (self.pipeline.is_pipeline_first_stage(True) or self.pipeline.is_pipeline_last_stage(True)):
            return [None, None]
        head, labels = self._loss.head, [paddle.to_tensor(batch["labels"]) for batch in micro_batches]
        head.check_switches()
        head.announce_length(labels[0].shape[1])
        if not self.pipeline.is_pipeline_first_stage(True):
            return [None, labels]
        inputs = [stage_inputs(self.stage, batch) for batch in micro_batches]
        prepare = getattr(self.stage, "_prepare_pipeline_inputs_func", None)
        if prepare is not None:
            return [prepare([{**one, "labels": own} for one, own in zip(inputs, labels)])[0], labels]
        return [tuple([one[key] for one in inputs] for key in FIRST_STAGE_INPUTS), labels]

    def _keep_trained_shares(self) -> None:
        """Sum gradients of matrices that stages share only where they are trained; Fleet would make and send zeros."""
        self.stage.shared_comm = {
            key: shared
            for key, shared in self.stage.shared_comm.items()
            if not all(getattr(shared["layer"], name).stop_gradient for name in shared["weight_attr"])
        }

    def _let_gradients_pass(self) -> None:
        """Let gradients come back to the first layers even if nothing is trained there: the schedule waits for them."""
        first = chunks_of(self.stage)[0]
        trained = (p for layer in first if isinstance(layer, paddle.nn.Layer) for p in layer.parameters())
        if self.pipeline.is_pipeline_first_stage(True) and all(p.stop_gradient for p in trained):
            first[0].register_forward_post_hook(_wants_gradients)


class _StageLoss:
    """What Fleet calls with the last stage's output; keeps what an evaluation finds."""

    def __init__(self, stage: paddle.nn.Layer) -> None:
        self.head = head_of(stage)
        self.scores: list[tuple[np.ndarray, int]] = []
        self._factor: float | None = None

    def train(self, factor: float) -> None:
        """Return the summed loss times ``factor`` from now on."""
        self._factor = factor

    def evaluate(self) -> None:
        """Score tokens from now on; nothing is returned that says anything."""
        self._factor, self.scores = None, []

    def __call__(self, hidden: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        flat = labels.numpy().reshape(-1)
        positions = np.flatnonzero(flat != IGNORED)
        untrained = len(positions) == 0
        if untrained:  # as on other ranks, which may wait for this one: one position, of no weight
            positions = np.asarray([0])
        hidden = self.head.rows_first(self.head.gathered(hidden, labels.shape))
        rows = paddle.gather(hidden.reshape([-1, hidden.shape[-1]]), paddle.to_tensor(positions))
        targets = paddle.to_tensor(np.maximum(flat[positions], 0))
        if self._factor is None:
            losses, correct = token_scores(self.head, rows, targets)
            self.scores.append((losses[:0], 0) if untrained else (losses, correct))
            return paddle.zeros([], dtype="float32")
        return summed_loss(self.head, rows, targets) * (0.0 if untrained else self._factor)


def _wants_gradients(layer: paddle.nn.Layer, inputs: Any, output: Any) -> None:
    (output[0] if isinstance(output, tuple) else output).stop_gradient = False


def _of_rows(batch: Mapping[str, Any], rows: int) -> Mapping[str, Any]:
    """Repeat the last row of a collated batch, untrained, until it has so many."""
    lacking = rows - len(batch["labels"])
    if lacking <= 0:
        return batch
    last = untrained({key: np.repeat(np.asarray(value)[-1:], lacking, axis=0) for key, value in batch.items()})
    return {key: np.concatenate([np.asarray(value), last[key]]) for key, value in batch.items()}
