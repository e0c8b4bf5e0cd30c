"""From our config to PaddleNLP's training arguments, without losing or silently changing a value."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import paddle
from paddlenlp.trl import SFTConfig

from paddlesft.config.derived import fall_back_to_float32
from paddlesft.errors import ConfigError
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.parallel import gloo
from paddlesft.parallel.visible_gpus import require_gpus
from paddlesft.quirks import visualdl_booleans

if TYPE_CHECKING:
    from paddlesft.config import RunConfig

log = logging.getLogger("paddlesft")
DERIVED = ("evaluation_strategy", "eval_steps", "do_eval", "metric_for_best_model")  # by PaddleNLP, from other keys


def training_arguments(run_config: RunConfig) -> SFTConfig:
    """Make PaddleNLP's training arguments.

    Differences from PaddleNLP's own defaults: nothing is reported to VisualDL unless asked, progress is shown by the
    observer (``disable_tqdm``), half precision is off on a CPU (where it would do nothing, or fail in a product).

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
    if "visualdl" in values["report_to"]:
        visualdl_booleans.apply()
    values["disable_tqdm"] = True
    if not config.no_cuda:
        require_gpus(str(config.device), paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0)
    if not paddle.is_compiled_with_cuda() or config.no_cuda or str(config.device).startswith("cpu"):
        for key in fall_back_to_float32(run_config, "half precision has no kernels on a CPU"):
            values[key] = False
            log.warning("%s: half precision has no kernels on a CPU; this run trains in float32", key)
        stage, _, offload = str(values.get("sharding") or "").partition(" ")
        if offload:
            values["sharding"] = stage
            log.warning("sharding: offload keeps state in the host's memory, where everything is on a CPU; left out")
        paddle.set_device("cpu")
        gloo.install(rows_only=not is_divided(values))  # now: the arguments create the groups of ranks
    try:
        with quiet_paddlenlp(logging.ERROR):
            arguments = SFTConfig(**values)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"PaddleNLP's trainer refuses these settings: {error}") from error
    for key, value in values.items():
        resolved = _plain(getattr(arguments, key, value))
        if key in DERIVED and resolved != _plain(value):
            run_config.derive(key, resolved, "derived by the trainer from the other settings")
    return arguments


def is_divided(values: Mapping[str, Any]) -> bool:
    """Return whether training arguments divide layers or the optimizer among ranks, besides the rows."""
    degrees = (values.get(f"{kind}_parallel_degree") for kind in ("tensor", "pipeline", "sharding", "sep", "context"))
    return bool(values.get("sharding")) or any((degree or 0) > 1 for degree in degrees)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
