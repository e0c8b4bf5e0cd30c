"""Values that follow from others. Each is recorded with its reason, so that the resolved table can show it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from paddlesft.config.quantization import GROUPWISE

if TYPE_CHECKING:
    from paddlesft.config.data import DataConfig
    from paddlesft.config.resolve import RunConfig

IF_THERE_IS_NONE = "If this machine has none, the run is in float32."
SMALLER_IS_BETTER = ("loss", "perplexity")
_HALF_KEYS = ("fp16", "bf16", "fp16_full_eval", "bf16_full_eval", "amp_master_grad")


def derive_values(run: RunConfig) -> None:
    """Fill in what follows from the values given, and from nothing but them and the launcher's environment."""
    _what_to_do(run)
    _quantization(run)
    _evaluation(run)
    _device(run)
    _lengths(run)
    if run.model.lora and run.model.lora_alpha is None:
        run.derive("lora_alpha", 2.0 * run.model.lora_rank, "2 * lora_rank")


def number_of_processes() -> int:
    """Return how many processes ``python -m paddle.distributed.launch`` started; 1 without it."""
    try:
        return max(1, int(os.environ.get("PADDLE_TRAINERS_NUM", "1")))
    except ValueError:
        return 1


def fall_back_to_float32(run: RunConfig, why: str) -> list[str]:
    """Turn half precision off, where the device turns out not to have it.

    Args:
        run: the configuration; changed.
        why: the reason, for the table.

    Returns:
        The keys that were turned off.
    """
    keys = [key for key in _HALF_KEYS if getattr(run.training, key)]
    for key in keys:
        run.derive(key, False, why)
    return keys


def _what_to_do(run: RunConfig) -> None:
    training = run.training
    if training.benchmark:
        for key, value in {
            "do_train": True,
            "do_eval": False,
            "do_predict": False,
            "evaluation_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
        }.items():
            if getattr(training, key) != value:
                run.derive(key, value, "benchmark measures speed only")
    switches = ("do_train", "do_eval", "do_predict", "do_ptq", "do_gptq", "do_awq", "do_qat")
    asked = any(run.was_set(key) for key in switches)
    if not asked and not training.do_train:
        run.derive("do_train", True, "no do_... key is given")


def _quantization(run: RunConfig) -> None:
    config = run.quantization
    if (config.do_gptq or config.do_awq) and not run.was_set("quant_type"):
        method = "do_gptq" if config.do_gptq else "do_awq"
        run.derive("quant_type", "weight_only_int4", f"{method} rounds weights only")
    if config.asked and config.weight_quant_method == "groupwise" and config.group_size is None:
        run.derive("group_size", GROUPWISE, "weight_quant_method is groupwise")
    whole = config.group_size is None and not run.was_set("weight_quant_method")
    if config.do_awq and whole and config.quant_type == "weight_only_int4":
        run.derive("group_size", GROUPWISE, "do_awq helps weights whose scales are those of groups")


def _evaluation(run: RunConfig) -> None:
    training = run.training
    strategy = training.evaluation_strategy
    if training.do_train and strategy != "no" and not training.do_eval and not run.was_set("do_eval"):
        run.derive("do_eval", True, f"evaluation_strategy is {strategy}")
    if training.do_train and training.do_eval and strategy == "no":
        follow = training.save_strategy if training.save_strategy != "no" else "epoch"
        run.derive("evaluation_strategy", follow, "do_eval is true; evaluate whenever a checkpoint is saved")
    if training.evaluation_strategy == "steps" and training.eval_steps is None:
        run.derive("eval_steps", training.save_steps, "save_steps")
    if training.load_best_model_at_end and training.metric_for_best_model is None:
        run.derive("metric_for_best_model", "loss", "the usual choice for load_best_model_at_end")
    metric = training.metric_for_best_model
    if metric is not None and training.greater_is_better is None:
        smaller = metric.removeprefix("eval_") in SMALLER_IS_BETTER
        run.derive("greater_is_better", not smaller, f"{metric} is better when {'smaller' if smaller else 'greater'}")
    data = run.data
    if data.eval_packing is None:
        if data.packing and data.eval_with_do_generation:
            run.derive("eval_packing", False, "replies are generated for one conversation at a time")
        elif data.packing:
            run.derive("eval_packing", True, "packing")
    if (data.eval_with_do_generation or training.do_predict) and run.generation.max_new_tokens is None:
        room = data.max_length - data.src_length
        if room > 0:
            run.derive("max_new_tokens", room, "max_length - src_length")


def _device(run: RunConfig) -> None:
    training = run.training
    if training.no_cuda and training.device != "cpu" and not run.was_set("device"):
        run.derive("device", "cpu", "no_cuda is true")
    if training.device == "cpu":
        fall_back_to_float32(run, "a CPU computes in float32")
    elif training.device == "auto" and (training.fp16 or training.bf16):
        key = "fp16" if training.fp16 else "bf16"
        run.notices.append(
            f"{run.origins[key].place}: {key} is for GPUs. {IF_THERE_IS_NONE}"
        )


def derived_src_length(data: DataConfig) -> int | None:
    """Return ``src_length`` for a ``max_length`` that its default leaves no room in, or None when it has room."""
    return max(1, data.max_length // 2) if data.src_length >= data.max_length else None


def _lengths(run: RunConfig) -> None:
    derived = derived_src_length(run.data)
    if derived is not None and not run.was_set("src_length"):
        run.derive("src_length", derived, "half of max_length")
