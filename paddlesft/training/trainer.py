"""The trainer: PaddleNLP's, with steps normalised by trained tokens and checkpoints that are complete or absent.

PaddleNLP averages each micro-batch and then the micro-batches of a step, so a short reply weighs more than a long one,
and micro-batches left over at an epoch's end leak into the next. Here the data loader hands out whole optimizer steps
(``sampling_order.StepSampler``): a step knows its trained tokens beforehand, over all micro-batches and ranks, and
divides their summed loss by that number. 1 row × 8 micro-batches and 8 rows × 1 are then the same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.distributed.fleet.meta_parallel import ShardingParallel, TensorParallel
from paddle.io import DataLoader
from paddlenlp.trainer import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from paddlesft.errors import UserError
from paddlesft.quirks import released_memory, sliced_weights_decay
from paddlesft.training import evaluation
from paddlesft.training.checkpoint_saving import delete_old_checkpoints
from paddlesft.training.checkpoint_writing import write_checkpoint
from paddlesft.training.events import Observer
from paddlesft.training.loss import IGNORED
from paddlesft.training.micro_batches import MicroBatches, number_of_tokens
from paddlesft.training.passes import Passes
from paddlesft.training.pipeline_passes import PipelinePasses
from paddlesft.training.progress import SpeedMeter, Stopwatch
from paddlesft.training.ranks import is_first_rank, sum_gradients, sum_over_ranks, wait_for_all
from paddlesft.training.resume import agree_on_checkpoint
from paddlesft.training.run_log import RunLog
from paddlesft.training.sampling_order import StepSampler
from paddlesft.training.sharded_passes import SHARDED, sharded_passes
from paddlesft.training.skipped_step import SkippedStep
from paddlesft.training.training_state import load_random_state, load_training_state
from paddlesft.training.weights_io import load_weights
from paddlesft.tuning.prefix_model import stage_or_model

MOST_BAD_STEPS = 5  # steps in a row whose loss is not finite, after which a run has diverged
WRAPPERS = (paddle.DataParallel, TensorParallel, ShardingParallel, *SHARDED)  # what PaddleNLP puts around a model
ESTIMATE_AFTER = 3  # steps after which the time of the whole run is announced

ExtraMetrics = Callable[[paddle.nn.Layer, Any, str], Mapping[str, float]]


class SFTTrainer(Trainer):
    """Supervised fine-tuning of a causal language model, bare or with an adapter.

    Args:
        model: the model to train.
        args: see ``arguments.training_arguments``; it is changed: PaddleNLP's loop sees one batch per optimizer step.
        collator: rows -> arrays of one batch.
        train_dataset: an ``SFTDataset``; None to evaluate only.
        eval_dataset: an ``SFTDataset`` or None.
        observer: told about every step.
        write_weights: writes the model's directory content into a directory (see ``weights_io.save_weights``).
        write_identity: writes ``run_identity.json`` into a directory.
        length_grouping: rows of similar length share a step.
        extra_metrics: (model, dataset, prefix) -> metrics added to an evaluation, e.g. of generated replies.
        callbacks: more PaddleNLP callbacks.
    """

    def __init__(
        self,
        model: paddle.nn.Layer,
        args: Any,
        collator: Callable[[Sequence[Any]], Mapping[str, Any]],
        train_dataset: Any = None,
        eval_dataset: Any = None,
        observer: Observer | None = None,
        write_weights: Callable[..., None] | None = None,
        write_identity: Callable[[Path], None] | None = None,
        length_grouping: bool = False,
        extra_metrics: ExtraMetrics | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.micro_batches = args.gradient_accumulation_steps
        args.gradient_accumulation_steps = 1
        args.sequence_parallel = False  # no hooks of PaddleNLP: see ranks.sum_sequence_gradients
        self.keep_best = args.load_best_model_at_end
        args.load_best_model_at_end = False  # PaddleNLP would look for .pdparams
        self.observer = observer or Observer()
        self.write_weights = write_weights
        self.write_identity = write_identity
        self.unified_checkpoint = True
        self.length_grouping = length_grouping
        self.extra_metrics = extra_metrics
        self.meter: SpeedMeter | None = None
        self.run_log: RunLog | None = None
        self._passes: Passes | None = None
        self._wrapper: paddle.nn.Layer | None = None
        self._skipped_step: SkippedStep | None = None
        self._bad_steps = 0
        self._held_memory = 0
        self._resume_from: Path | None = None
        super().__init__(
            model=stage_or_model(model),
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[_Hooks(self), *callbacks],
        )
        self.model = self.model_wrapped = model
        for shown in (PrinterCallback, ProgressCallback):
            self.pop_callback(shown)

    # ---- data ----

    def step_sampler(self) -> StepSampler:
        """Return the order of the training rows."""
        rows = range(len(self.train_dataset))
        lengths = [self.train_dataset.length(i) for i in rows] if self.length_grouping else None
        return StepSampler(
            num_rows=len(rows),
            micro_batch_size=self.args.per_device_train_batch_size,
            micro_batches=self.micro_batches,
            seed=self.args.seed,
            num_replicas=self.args.dataset_world_size,
            rank=self.args.dataset_rank,
            lengths=lengths,
            drop_last=self.args.dataloader_drop_last,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader whose items are the micro-batches of whole optimizer steps."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.step_sampler(),
            collate_fn=MicroBatches(
                self.data_collator, self.args.per_device_train_batch_size, stand_in=self.train_dataset[0]
            ),
            num_workers=self.args.dataloader_num_workers,
            use_buffer_reader=False,
        )

    # ---- a step ----

    def create_optimizer(self, lr_scheduler: Any = None) -> Any:
        """Make PaddleNLP's optimizer, which decays the same weights in every layout."""
        optimizer = super().create_optimizer(lr_scheduler)
        sliced_weights_decay.apply(optimizer)
        return optimizer

    def _wrap_model(self, model: paddle.nn.Layer, training: bool = True) -> paddle.nn.Layer:
        """Keep the bare model: gradients are summed once per step, weighted by tokens instead of by rank.

        The wrappers' constructors have made the ranks' weights equal. What else they do is to hand the inputs of one
        rank to those that share its layers, which have read the same rows themselves.
        """
        self._wrapper = wrapped = super()._wrap_model(stage_or_model(model), training)
        self._passes = None
        if isinstance(wrapped, SHARDED):
            self.args.release_grads = False  # they do so where they can, and their clear_grad cannot be told to
        while isinstance(wrapped, WRAPPERS):
            wrapped = wrapped._layer if isinstance(wrapped, SHARDED) else wrapped._layers
        return wrapped

    @property
    def passes(self) -> Passes:
        """What takes batches through the model."""
        if self._passes is None and self.args.pipeline_parallel_degree > 1:
            scaler = self.scaler if self.do_grad_scaling else None
            self._passes = PipelinePasses(self.model, self.autocast_smart_context_manager, scaler, self._wrapper)
        if self._passes is None:
            scale = self.scaler.scale if self.do_grad_scaling else lambda loss: loss
            kind = sharded_passes(self._wrapper) or Passes
            self._passes = kind(self.model, self.autocast_smart_context_manager, scale)
        return self._passes

    def training_step(self, model: paddle.nn.Layer, inputs: Sequence[Mapping[str, Any]]) -> paddle.Tensor:
        """Run the forward and backward passes of one optimizer step.

        Args:
            model: the model to train.
            inputs: the step's micro-batches on this rank.

        Returns:
            The step's loss per trained token, over all ranks.
        """
        model.train()
        watch = self._watch
        watch.restart()
        self._learning_rate = self.optimizer.get_lr()
        trained = sum(int((np.asarray(batch["labels"]) != IGNORED).sum()) for batch in inputs)
        tokens = sum(number_of_tokens(batch) for batch in inputs)
        trained, tokens = (int(n) for n in sum_over_ranks([trained, tokens]))
        # Under a hybrid layout PaddleNLP's loop averages the gradients over the ranks that read different rows.
        averaged = self.args.dataset_world_size if self.args.use_hybrid_parallel else 1
        (loss_sum,) = sum_over_ranks([self.passes.step(inputs, averaged / max(trained, 1))])
        if math.isfinite(loss_sum):
            self._bad_steps = 0
            if not self.args.use_hybrid_parallel:
                sum_gradients(model.parameters())
        else:
            self._skip_bad_step(loss_sum)
        self._step_sums = (loss_sum if math.isfinite(loss_sum) else 0.0, trained, tokens)
        return paddle.to_tensor(self._step_sums[0] / max(trained, 1))

    def _skip_bad_step(self, loss: float) -> None:
        self._bad_steps += 1
        step = self.state.global_step + 1
        if self._bad_steps >= MOST_BAD_STEPS:
            raise UserError(
                f"Training has diverged: the loss was {loss} in {MOST_BAD_STEPS} steps in a row (up to step {step}). "
                "The checkpoints written so far are intact. Usual causes: learning_rate too high (3e-4 is usual for "
                "LoRA, 3e-5 for full fine-tuning), no warmup_ratio, max_grad_norm 0, fp16 where bf16 is available, or "
                "a damaged base model. Lower learning_rate first."
            )
        self.observer.warning(
            f"step {step}: the loss is {loss}; the step changes no weights ({self._bad_steps} of {MOST_BAD_STEPS} in a "
            "row before the run is stopped)"
        )
        if not self.do_grad_scaling:  # otherwise the loss scale sees the gradients and skips them itself
            self._skipped_step = SkippedStep(self.optimizer)

    def _check_loss_valid(self, loss: paddle.Tensor) -> None:
        """Losses are checked in ``training_step``, which can skip a step instead of ending the run at once."""

    # ---- log, evaluate, save ----

    def _maybe_log_save_evaluate(self, tr_loss, model, epoch, ignore_keys_for_eval, **kwargs) -> None:
        self._total_loss_scalar += float(tr_loss)
        tr_loss.subtract_(tr_loss)
        if self.control.should_log and self.meter.has_news:
            record = self.meter.line(self.state.global_step, self._learning_rate, self.state.epoch)
            if self.run_log is not None:
                self.run_log.append("train", record.as_dict())
            self.observer.log(record)
            self.log(record.as_dict())
        self.control.should_log = False
        metrics = self.evaluate() if self.control.should_evaluate and self.eval_dataset is not None else None
        if self.control.should_save:
            self._save_checkpoint(model, metrics)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def log(self, logs: dict[str, float], **kwargs: Any) -> None:
        """Hand a record to the reporting callbacks (VisualDL) and keep it in the trainer's state."""
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, dict(logs), **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Evaluate a data set.

        Args:
            eval_dataset: an ``SFTDataset``; the trainer's own when None.
            ignore_keys: not used; it is in PaddleNLP's signature.
            metric_key_prefix: first part of the metrics' names.

        Returns:
            Loss, perplexity, token accuracy, tokens, runtime, and what ``extra_metrics`` adds.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        args, begin = self.args, time.perf_counter()
        size, ranks = args.per_device_eval_batch_size, args.dataset_world_size
        batches = evaluation.number_of_batches(len(dataset), size, ranks, args.max_evaluate_steps)
        sums = evaluation.evaluate_sums(
            self.model,
            evaluation.evaluation_batches(dataset, self.data_collator, size, args.dataset_rank, ranks),
            args.max_evaluate_steps,
            self.passes.score,
            lambda done: self.observer.evaluating(done, batches),
        )
        metrics = sums.metrics(metric_key_prefix, accuracy=not args.prediction_loss_only)
        if self.extra_metrics is not None:
            with self.passes.whole_model():
                metrics |= self.extra_metrics(self.model, dataset, metric_key_prefix)
        seconds = time.perf_counter() - begin
        metrics[f"{metric_key_prefix}_runtime"] = round(seconds, 4)
        metrics[f"{metric_key_prefix}_samples_per_second"] = round(sums.rows / max(seconds, 1e-9), 3)
        step = self.state.global_step
        if self.run_log is not None and dataset is self.eval_dataset:
            self.run_log.append("eval", {"step": step, "epoch": self.state.epoch, **metrics})
        self.observer.evaluation(step, metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluation_at(self, step: int) -> dict[str, float] | None:
        """Return the metrics of the evaluation at a step, of this attempt or one before; None when there was none."""
        for record in reversed(self.state.log_history):
            if record["step"] == step and "eval_loss" in record:
                return {name: value for name, value in record.items() if name.startswith("eval_")}
        return None

    def _save_checkpoint(self, model: paddle.nn.Layer, metrics: Mapping[str, float] | None = None) -> None:
        step, output_dir = self.state.global_step, Path(self.args.output_dir)
        self._note_if_best(output_dir / f"checkpoint-{step}", metrics)
        self.state.trial_params = {"meter": self.meter.state()}  # the one field of the state that is free
        write_checkpoint(self, output_dir, step)
        if is_first_rank():
            delete_old_checkpoints(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
            self.observer.checkpoint(output_dir / f"checkpoint-{step}")

    def _note_if_best(self, checkpoint: Path, metrics: Mapping[str, float] | None) -> None:
        wanted = self.args.metric_for_best_model
        if metrics is None or wanted is None:
            return
        name = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if name not in metrics:
            known = ", ".join(sorted(k.removeprefix("eval_") for k in metrics))
            raise UserError(f"metric_for_best_model: {wanted!r} is not among this run's metrics. Allowed: {known}.")
        value, best = metrics[name], self.state.best_metric
        if best is None or (value > best if self.args.greater_is_better else value < best):
            self.state.best_metric = value
            self.state.best_model_checkpoint = str(checkpoint)

    # ---- begin, resume, end ----

    def train(self, resume_from_checkpoint: str | None = None, ignore_keys_for_eval=None) -> Any:
        """Train, from the first step or from a checkpoint.

        Args:
            resume_from_checkpoint: a complete checkpoint's path, or None.
            ignore_keys_for_eval: not used; it is in PaddleNLP's signature.

        Returns:
            PaddleNLP's ``TrainOutput``.
        """
        agree_on_checkpoint(resume_from_checkpoint, self.args.output_dir)
        self._resume_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self._watch = Stopwatch()
        output = super().train(resume_from_checkpoint=resume_from_checkpoint)
        best = self.state.best_model_checkpoint
        if self.keep_best and best is not None:
            wait_for_all()  # the first rank may still be writing it
            load_weights(self.model, Path(best))
            score = f"{self.args.metric_for_best_model} {self.state.best_metric:.6g}"
            self.observer.message(f"the result is the best checkpoint, {Path(best).name} ({score})")
        return output

    def _load_from_checkpoint(self, resume_from_checkpoint: str | None = None) -> None:
        if resume_from_checkpoint:
            load_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint and not self.args.ignore_load_lr_and_optim:
            load_training_state(Path(checkpoint), self)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint and not load_random_state(Path(checkpoint)):
            self.observer.warning(
                f"{checkpoint} was written by processes that divided the work in another way: dropout will differ"
            )


class _Hooks(TrainerCallback):
    """Counts steps and restores the random generators; PaddleNLP restores them only in the middle of an epoch."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        trainer = self.trainer
        trainer.meter = SpeedMeter(state.max_steps, (state.trial_params or {}).get("meter"))
        if trainer._resume_from is not None:
            trainer._load_rng_state(str(trainer._resume_from))
        if args.should_save:
            trainer.run_log = RunLog(args.output_dir, state.global_step)

    def on_optimizer_end(self, args, state, control, **kwargs) -> None:
        if self.trainer._skipped_step is not None:
            self.trainer._skipped_step.end()
            self.trainer._skipped_step = None

    def on_step_end(self, args, state, control, **kwargs) -> Any:
        trainer, meter = self.trainer, self.trainer.meter
        meter.add_step(*trainer._step_sums, trainer._watch.restart())
        trainer._held_memory = released_memory.give_back_excess(trainer._held_memory)
        loss_sum, trained, _ = trainer._step_sums
        eta = meter.eta_seconds(state.global_step)
        loss = loss_sum / max(trained, 1)
        trainer.observer.step(state.global_step, state.max_steps, loss, meter.last_step_tokens_per_second, eta)
        if meter.steps == ESTIMATE_AFTER:
            trainer.observer.estimate(meter.step_seconds, meter.seconds + eta)
        if state.global_step >= state.max_steps and args.logging_strategy.value == "steps":
            control.should_log = True  # the last steps count too, whatever logging_steps is
        return control
