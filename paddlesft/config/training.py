"""Keys about the run itself: what to do, batches, optimiser, evaluation, saving, logging, resuming.

``TrainingConfig`` joins this file with the keys about precision, about several processes and about rare cases. Together
they cover every argument of the installed paddlenlp ``SFTConfig``; a test compares the two.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from paddlesft.config.fields import LARGEST_SEED, field
from paddlesft.config.parallel_switches import SWITCHES, effective
from paddlesft.config.training_hardware import HardwareConfig
from paddlesft.config.training_parallel import ParallelConfig
from paddlesft.config.training_rare import RareConfig

Interval = Literal["no", "steps", "epoch"]


@dataclass
class ScheduleConfig:
    """Run, optimiser, evaluation, saving, logging"""

    output_dir: str | None = field(None, "Directory that receives checkpoints, logs and the result.")
    overwrite_output_dir: bool = field(
        False, "Start anew although output_dir has content; without it the newest complete checkpoint is resumed."
    )
    do_train: bool = field(False, "Train.")
    do_eval: bool = field(False, "Evaluate. Follows from evaluation_strategy when that is set.")
    do_predict: bool = field(False, "Answer the rows of the test data at the end.")
    do_export: bool = field(False, "Export for static inference at the end.", unbuilt="static export")

    # Length and batches
    num_train_epochs: float = field(1.0, "Passes over the training data; may be a fraction.", over=0)
    max_steps: int = field(-1, "Optimiser steps of the run; overrides num_train_epochs. -1: not set.", minimum=-1)
    per_device_train_batch_size: int = field(8, "Rows of a training batch on one device.", minimum=1)
    per_device_eval_batch_size: int = field(8, "Rows of an evaluation batch on one device.", minimum=1)
    gradient_accumulation_steps: int = field(1, "Batches whose gradients make one optimiser step.", minimum=1)
    seed: int = field(
        42, "Seed of everything random; the same seed gives the same run on a CPU.", minimum=0, maximum=LARGEST_SEED
    )

    # Optimiser and learning rate
    optim: Literal["adamw", "adafactor", "adamw_mini", "adamw_custom", "adamw_16bit_moment"] = field(
        "adamw", "Optimiser."
    )
    learning_rate: float = field(
        2e-5, "Peak learning rate. Usual: 3e-4 for LoRA, 3e-5 full, 3e-2 for prefixes.", over=0
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = field(
        "linear", "Shape of the learning rate after warm-up.", aliases=("lr_scheduler",)
    )
    warmup_ratio: float = field(0.0, "Share of all steps used for warm-up.", minimum=0, maximum=1)
    warmup_steps: int = field(0, "Steps of warm-up; overrides warmup_ratio.", minimum=0)
    decay_steps: int = field(
        0,
        "Steps over which the learning rate falls. 0: all.",
        minimum=0,
        no_effect="the learning rate falls over all steps behind the warm-up",
    )
    num_cycles: float = field(0.5, "Waves of the cosine schedule.", over=0)
    lr_end: float = field(1e-7, "Final learning rate of the polynomial schedule.", minimum=0)
    power: float = field(1.0, "Exponent of the polynomial schedule.", over=0)
    weight_decay: float = field(0.0, "Weight decay; biases and norms are left out.", minimum=0)
    adam_beta1: float = field(0.9, "AdamW's beta 1.", minimum=0, maximum=1)
    adam_beta2: float = field(0.999, "AdamW's beta 2.", minimum=0, maximum=1)
    adam_epsilon: float = field(1e-8, "AdamW's epsilon.", over=0)
    max_grad_norm: float = field(1.0, "Gradients are scaled down to this norm. 0: never.", minimum=0)

    # Evaluation
    evaluation_strategy: Interval = field(
        "no", "When to evaluate: no, every eval_steps (steps), or after each epoch.", aliases=("eval_strategy",)
    )
    eval_steps: int | None = field(None, "Steps between evaluations. Unset: save_steps.", minimum=1)
    max_evaluate_steps: int = field(
        -1, "Batches of an evaluation at most. -1: all.", minimum=-1, aliases=("eval_iters",)
    )
    minimum_eval_times: int | None = field(
        None, "Make eval_steps smaller so that this many evaluations happen.", minimum=1
    )
    eval_accumulation_steps: int | None = field(
        None,
        "Batches of predictions kept before they move to the host.",
        minimum=1,
        no_effect="evaluation keeps sums, never the predictions, so there is nothing to move",
    )
    prediction_loss_only: bool = field(False, "Evaluate the loss and nothing else.")

    # Saving and resuming
    save_strategy: Interval = field("steps", "When to save: no, every save_steps (steps), or after each epoch.")
    save_steps: int = field(500, "Steps between checkpoints.", minimum=1)
    save_total_limit: int | None = field(None, "Checkpoints kept; the oldest go first. Unset: all.", minimum=1)
    load_best_model_at_end: bool = field(False, "End with the best checkpoint instead of the last.")
    metric_for_best_model: str | None = field(None, "Metric that decides which is best. Unset: loss.")
    greater_is_better: bool | None = field(None, "Whether more of that metric is better. Unset: by the metric.")
    resume_from_checkpoint: str | None = field(
        None, "Checkpoint directory to resume from. Unset: the newest complete one."
    )
    allow_resume_differences: bool = field(
        False, "Resume although the checkpoint was made with other settings, data or base model."
    )
    ignore_data_skip: bool = field(False, "When resuming, start with the first row again.")
    ignore_load_lr_and_optim: bool = field(False, "When resuming, start with a fresh optimiser and schedule.")
    ignore_save_lr_and_optim: bool = field(False, "Save checkpoints without optimiser and schedule (no resume).")

    # Logging
    logging_dir: str | None = field(None, "Directory of VisualDL logs. Unset: output_dir/runs/<time>.")
    logging_strategy: Interval = field("steps", "When to log: no, every logging_steps (steps), or after each epoch.")
    logging_steps: int = field(10, "Steps between log lines.", minimum=1)
    logging_first_step: bool = field(False, "Log the first step too.")
    report_to: list[str] | None = field(
        None, "Where metrics go besides train_log.jsonl: visualdl, tensorboard, wandb. Unset: nowhere else."
    )
    run_name: str | None = field(None, "Name of the run in those logs.")
    disable_tqdm: bool | None = field(None, "No progress bar. Unset: a bar on a terminal, none elsewhere.")
    metrics_output_path: str | None = field(None, "Also write each process's metrics below this directory.")
    benchmark: bool = field(False, "Measure speed only: no evaluation, no checkpoints.")


@dataclass
class TrainingConfig(RareConfig, ParallelConfig, HardwareConfig, ScheduleConfig):
    """Training"""

    def paddlenlp_arguments(self) -> dict[str, Any]:
        """Return the keys that paddlenlp's ``SFTConfig`` takes, with our values.

        Values that only this package has (``allow_resume_differences``, ``device: auto``) and keys without effect are
        left out, so that paddlenlp applies its own.
        """
        own = {"allow_resume_differences", "hang_timeout"} | ({"device"} if self.device == "auto" else set())
        own |= {f.name for f in dataclasses.fields(self) if f.metadata["no_effect"]}
        own |= {"unified_checkpoint"}  # this package's trainer sees to it
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in own}
        return values | {key: effective(key, values[key]) for key in SWITCHES}
