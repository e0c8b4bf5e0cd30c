"""One training run, from the resolved config to the directory that it leaves behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle

from paddlesft.directories import write_json
from paddlesft.errors import ConfigError
from paddlesft.models.fast import accelerate
from paddlesft.models.load import load_model, quiet_paddlenlp
from paddlesft.models.pipeline import load_stage
from paddlesft.models.quantized.on_load import BASE_ENTRY, entry_of_base
from paddlesft.models.quantized.origin import facts_of_base, in_words
from paddlesft.parallel.layout import AXES, Layout
from paddlesft.training import resume
from paddlesft.training.arguments import training_arguments
from paddlesft.training.checkpoint_saving import checkpoint_step
from paddlesft.training.checkpoint_writing import TRAINER_STATE
from paddlesft.training.events import Observer, Plan
from paddlesft.training.generation_metrics import OUTPUT_FILE, GenerationEvaluation, sampling_options
from paddlesft.training.model_switches import set_model_switches
from paddlesft.training.rank_watch import RankWatch, rank_watch
from paddlesft.training.ranks import is_first_rank, world_size
from paddlesft.training.results import SOURCE, remove_earlier_run, save_final_model, save_metrics, save_plot
from paddlesft.training.run_inputs import RunInputs, read_inputs
from paddlesft.training.run_layout import run_layout
from paddlesft.training.trainer import SFTTrainer
from paddlesft.training.weights_io import save_weights
from paddlesft.tuning.prepare import base_format, parameter_counts, prepare_for_tuning, tuning_method

if TYPE_CHECKING:
    from paddlesft.config import RunConfig

log = logging.getLogger("paddlesft")


@dataclass
class TrainResult:
    """What came out of a run.

    Attributes:
        output_dir: the run's directory; with ``do_train`` it is now a model directory (full) or adapter directory.
        method: lora, prefix or full.
        base: directory of the base model.
        steps: optimizer steps done in all.
        metrics: every metric of the run: ``train_loss``, ``eval_loss``, ...
        resumed_from: the checkpoint the run went on from.
        best_checkpoint: the one with the best metric.
        plot: ``loss.png``.
        seconds: time of the run.
    """

    output_dir: Path
    method: str
    base: Path
    steps: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    resumed_from: Path | None = None
    best_checkpoint: Path | None = None
    plot: Path | None = None
    seconds: float = 0.0


def train(run_config: RunConfig, observer: Observer | None = None) -> TrainResult:
    """Do what a config asks for: train, evaluate, predict.

    Args:
        run_config: the resolved config; values derived on the way are recorded in it.
        observer: told what happens.

    Returns:
        The result.

    Raises:
        UserError: config, data, model or checkpoint cannot be used, or training diverged; the message says what to do.
    """
    observer = observer if observer is not None and is_first_rank() else Observer()
    with rank_watch(run_config.training.hang_timeout) as watch:
        return _run(run_config, watch.watched(observer), watch)


def _run(run_config: RunConfig, observer: Observer, watch: RankWatch) -> TrainResult:
    begin = time.perf_counter()
    training = run_config.training
    if not (training.do_train or training.do_eval or training.do_predict):
        raise ConfigError("Nothing to do: set do_train, do_eval or do_predict to true.")
    method = tuning_method(run_config)
    _protect_base(run_config)
    layout = run_layout(run_config, observer)
    checkpoint = _find_start(run_config, observer) if training.do_train else None
    arguments = training_arguments(run_config)
    output_dir = Path(arguments.output_dir)
    observer.resolved_config(run_config)
    with quiet_paddlenlp():
        inputs = read_inputs(run_config, observer)
        result = TrainResult(output_dir, method, inputs.base, resumed_from=checkpoint)
        trainer, plan = _build(run_config, arguments, inputs, observer, method, checkpoint, layout)
        if is_first_rank():  # from here on the run can work: now earlier content may go
            if training.do_train and checkpoint is None and (removed := remove_earlier_run(output_dir)):
                observer.message(f"starting anew; removed from {output_dir}: {', '.join(removed)}")
            run_config.save(output_dir)
        for callback in watch.callbacks():
            trainer.add_callback(callback)
        if plan is not None:
            observer.plan(plan)
        if training.do_train:
            _train(trainer, run_config, inputs, observer, result, checkpoint)
        with watch.watching("evaluation"):
            _evaluate(trainer, run_config, inputs, result)
    result.seconds = time.perf_counter() - begin
    observer.finished(result)
    return result


def _protect_base(run_config: RunConfig) -> None:
    base, output = run_config.model.model_name_or_path, run_config.training.output_dir
    if base and output and Path(base).is_dir() and Path(base).resolve() == Path(output).expanduser().resolve():
        raise ConfigError(f"output_dir: {output} is the base model's own directory. Choose another one.")


def _find_start(run_config: RunConfig, observer: Observer) -> Path | None:
    training = run_config.training
    output_dir = Path(training.output_dir or "").expanduser()
    if not training.output_dir:
        raise ConfigError("output_dir is not set: name the directory that receives checkpoints, logs and the result.")
    given = training.resume_from_checkpoint
    checkpoint, passed_over = resume.find_checkpoint(
        output_dir, given, training.overwrite_output_dir, protect=is_first_rank()
    )
    for path, reason in passed_over:
        observer.warning(f"passed over {path.name}: {reason}")
    if checkpoint is not None:
        how = "as resume_from_checkpoint says" if given else "the newest complete checkpoint of output_dir"
        observer.message(f"going on from {checkpoint} ({how})")
    return checkpoint


def _build(
    run_config: RunConfig,
    arguments: Any,
    inputs: RunInputs,
    observer: Observer,
    method: str,
    checkpoint: Path | None,
    layout: Layout,
) -> tuple[SFTTrainer, Plan | None]:
    """Load the model, make it trainable, put the trainer around it, guard the checkpoint. Nothing is written."""
    training = run_config.training
    half = "float16" if training.fp16 else "bfloat16" if training.bf16 else None
    pure = half if training.fp16_opt_level == "O2" else None
    degree = max(arguments.tensor_parallel_degree, 1)
    load = load_model
    how = base_format(run_config)
    if layout.pipeline > 1:
        load = partial(load_stage, virtual=layout.virtual)
    elif how is not None:
        load = partial(load_model, quantize=how)
    model = load(
        inputs.base,
        dtype=run_config.model.dtype or pure or "float32",
        for_training=True,
        tensor_parallel=(degree, arguments.tensor_parallel_rank if degree > 1 else 0),
        sequence_parallel=arguments.sequence_parallel,
    )
    set_model_switches(model, run_config)
    if degree == layout.pipeline == 1:  # the fast layers hold whole weights and are called by the decoder
        accelerate(model)
    base = facts_of_base(inputs.base, run_config.model.model_name_or_path)
    model = prepare_for_tuning(model, run_config)
    train_set, eval_set = inputs.datasets.get("train"), inputs.datasets.get("eval")
    facts = _provenance(run_config, inputs, method, base)
    if how is not None:
        facts[BASE_ENTRY] = entry_of_base(how)
        observer.message(f"the base's Linear layers were quantized while they were loaded: {in_words(how)}")
    generation = None
    if run_config.data.eval_with_do_generation:
        write = run_config.data.save_generation_output and is_first_rank()
        generation = GenerationEvaluation(
            inputs.tokenizer,
            sampling_options(run_config),
            inputs.stop_token_ids,
            inputs.renderer.pad_token_id,
            training.per_device_eval_batch_size,
            Path(arguments.output_dir) / OUTPUT_FILE if write else None,
            observer.evaluating,
        )
    trainer = SFTTrainer(
        model,
        arguments,
        inputs.collator(run_config),
        train_set,
        eval_set,
        observer,
        write_weights=lambda directory, unified=True: save_weights(model, inputs.text_side, directory, facts, unified),
        length_grouping=run_config.data.length_grouping,
        extra_metrics=generation,
    )
    if train_set is None:
        return trainer, None
    plan = _plan(run_config, trainer, method, checkpoint, layout)
    identity = resume.run_identity(
        run_config.flat(),
        base["fingerprint"],
        train_set.fingerprint,
        {axis: layout.degree(axis) for axis in AXES},
        plan.steps,
        plan.steps_per_epoch,
    )
    trainer.write_identity = lambda directory: write_json(directory / resume.IDENTITY, identity)
    trainer.unified_checkpoint = training.unified_checkpoint
    if checkpoint is not None:
        saved = resume.read_identity(checkpoint)
        resume.refuse_parts_of_another_layout(checkpoint, saved, identity)
        differences = resume.compare(saved, identity)
        observer.resumed(checkpoint, plan.first_step, differences)
        resume.refuse_breaking(checkpoint, differences, training.allow_resume_differences)
    return trainer, plan


def _plan(run_config: RunConfig, trainer: SFTTrainer, method: str, checkpoint: Path | None, layout: Layout) -> Plan:
    training, sampler = run_config.training, trainer.step_sampler()
    steps_per_epoch, epochs = len(sampler), training.num_train_epochs
    steps = training.max_steps if training.max_steps > 0 else int(steps_per_epoch * epochs)
    if steps < 1:
        raise ConfigError(
            f"num_train_epochs: {epochs} of {steps_per_epoch} steps per epoch is less than one step. Raise it, or set "
            "max_steps."
        )
    trained, parameters = parameter_counts(trainer.model)
    return Plan(
        method=method,
        trained_parameters=trained,
        parameters=parameters,
        rows=sampler.num_rows,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        first_step=(checkpoint_step(checkpoint) or 0) if checkpoint else 0,
        rows_per_step=sampler.rows_per_step,
        device=paddle.get_device(),
        ranks=world_size(),
        layout=str(layout),
    )


def _provenance(run_config: RunConfig, inputs: RunInputs, method: str, base: Mapping[str, str]) -> dict[str, Any]:
    data = run_config.data
    facts: dict[str, Any] = {"source": f"{SOURCE}, {method}", "method": method, "base": dict(base)}
    if data.chat_template and inputs.text_side.template_file is None:
        facts["chat_template"] = data.chat_template  # a built-in's name; a file is copied instead
    if data.system_prompt:
        facts["system_prompt"] = data.system_prompt
    if "train" in inputs.datasets:
        facts["data"] = {"fingerprint": inputs.datasets["train"].fingerprint, "files": inputs.reports["train"].files}
    facts["seed"] = run_config.training.seed
    return facts


def _train(
    trainer: SFTTrainer,
    run_config: RunConfig,
    inputs: RunInputs,
    observer: Observer,
    result: TrainResult,
    checkpoint: Path | None,
) -> None:
    begin = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    meter, state = trainer.meter, trainer.state
    seconds = time.perf_counter() - begin
    metrics = {
        "train_loss": meter.mean_loss,
        "train_steps": state.global_step,
        "epoch": state.epoch,
        "train_trained_tokens": meter.trained_tokens,
        "train_runtime": round(seconds, 3),
        "train_tokens_per_second": round(meter.tokens / max(meter.seconds, 1e-9), 2),  # padding left out
        "train_steps_per_second": round(meter.steps / max(meter.seconds, 1e-9), 4),
        "train_rows": len(inputs.datasets["train"]),
    }
    result.steps = state.global_step
    result.metrics |= metrics
    if state.best_model_checkpoint:
        result.best_checkpoint = Path(state.best_model_checkpoint)
    if not is_first_rank():
        trainer.write_weights(None)  # hands its part to the first rank
        return
    save_final_model(result.output_dir, trainer.write_weights)
    save_metrics(result.output_dir, "train", metrics)
    state.save_to_json(str(result.output_dir / TRAINER_STATE))
    name = run_config.model.model_name_or_path
    result.plot = save_plot(result.output_dir, f"{name} · {result.method}")


def _evaluate(trainer: SFTTrainer, run_config: RunConfig, inputs: RunInputs, result: TrainResult) -> None:
    """Evaluate at the end, unless the model was just evaluated as it is; then answer the test data."""
    for split in ("eval", "test"):
        dataset = inputs.datasets.get(split)
        if dataset is None:
            continue
        metrics = _evaluation_of_the_result(trainer) if split == "eval" else None
        metrics = metrics or trainer.evaluate(dataset, metric_key_prefix=split)
        result.metrics |= metrics
        if is_first_rank():
            save_metrics(result.output_dir, split, metrics)
    if run_config.training.do_train and is_first_rank():
        title = f"{run_config.model.model_name_or_path} · {result.method}"
        result.plot = save_plot(result.output_dir, title) or result.plot


def _evaluation_of_the_result(trainer: SFTTrainer) -> dict[str, float] | None:
    best = trainer.state.best_model_checkpoint if trainer.keep_best else None
    step = checkpoint_step(Path(best)) if best else trainer.state.global_step
    return trainer.evaluation_at(step or 0)
