"""Config keys that switch how a model computes, not what it is: recompute, flash attention, fused kernels."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import paddle

if TYPE_CHECKING:
    from paddlesft.config import RunConfig

log = logging.getLogger("paddlesft")
SWITCHES = (
    "use_flash_attention", "use_fused_rms_norm", "use_fused_rope", "use_fused_linear", "use_fused_dropout_add",
    "recompute", "recompute_granularity", "no_recompute_layers", "recompute_use_reentrant",
)  # fmt: skip


GPU_KERNELS = ("use_fused_rms_norm", "use_fused_rope", "use_fused_dropout_add")  # asked for elsewhere, they fail


def set_model_switches(model: paddle.nn.Layer, run_config: RunConfig) -> None:
    """Hand the switches of a config to a model that is built already.

    PaddleNLP's layers read some of them from the config at each step and keep others as attributes; both are set.
    Recompute itself is turned on by the trainer, for layers that have an ``enable_recompute``.

    Args:
        model: a causal language model; its config and layers are changed.
        run_config: the resolved config.
    """
    chosen = _chosen(run_config)
    for key, value in chosen.items():
        setattr(model.config, key, value)
    for layer in model.sublayers(include_self=True):
        for key, value in chosen.items():
            if key in layer.__dict__:
                setattr(layer, key, value)


def _chosen(run_config: RunConfig) -> dict[str, Any]:
    """Return the switches of a config that work on the current device."""
    values = run_config.flat()
    chosen: dict[str, Any] = {key: values[key] for key in SWITCHES if values.get(key) is not None}
    if paddle.get_device().startswith("cpu"):
        absent = [key for key in GPU_KERNELS if chosen.pop(key, False)]
        if absent:
            log.warning("%s: these kernels exist on GPUs only; the plain ones are used.", ", ".join(absent))
    return chosen
