"""From our config to PaddleNLP's training arguments, without losing or silently changing a value."""

from __future__ import annotations

import logging
from enum import Enum
from typing import TYPE_CHECKING, Any

import paddle
from paddlenlp.trl import SFTConfig

from paddlesft.errors import ConfigError

if TYPE_CHECKING:
    from paddlesft.config import RunConfig

log = logging.getLogger("paddlesft")
DERIVED = ("evaluation_strategy", "eval_steps", "do_eval", "metric_for_best_model")  # by PaddleNLP, from other keys
SMALLER_IS_BETTER = ("loss", "perplexity")


def training_arguments(run_config: RunConfig) -> SFTConfig:
    """Make PaddleNLP's training arguments.

    Differences from PaddleNLP's own defaults: nothing is reported to VisualDL unless asked, progress is shown by the
    observer (``disable_tqdm``), a smaller perplexity is better, half precision stays off on CPU (it would do nothing).

    Args:
        run_config: the resolved config; values that PaddleNLP derives are recorded in it.

    Returns:
        The arguments.

    Raises:
        ConfigError: PaddleNLP refuses a combination; its reason is in the message.
    """
    config = run_config.training
    values = dict(config.paddlenlp_arguments())
    if not values.get("output_dir"):
        raise ConfigError("output_dir is not set: name the directory that receives checkpoints, logs and the result.")
    values["report_to"] = list(values.get("report_to") or [])
    values["disable_tqdm"] = True
    metric = values.get("metric_for_best_model")
    if values.get("greater_is_better") is None and metric is not None:
        values["greater_is_better"] = not metric.removeprefix("eval_").endswith(SMALLER_IS_BETTER)
    if not paddle.is_compiled_with_cuda() or values.get("no_cuda") or values.get("device") == "cpu":
        for key in ("fp16", "bf16", "fp16_full_eval", "bf16_full_eval"):
            if values.get(key):
                values[key] = False
                run_config.derive(key, False, "half precision has no kernels on a CPU; training is in float32")
                log.warning("%s: half precision has no kernels on a CPU; this run trains in float32", key)
    try:
        arguments = SFTConfig(**values)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"PaddleNLP's trainer refuses these settings: {error}") from error
    for key, value in values.items():
        resolved = _plain(getattr(arguments, key, value))
        if key in DERIVED and resolved != _plain(value):
            run_config.derive(key, resolved, "derived by the trainer from the other settings")
    return arguments


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
