"""Weight decay passes over the weights that sharding stage 3 has divided (paddlenlp 3.0.0b4, paddlepaddle 3.3.1).

Upstream symbols: ``paddlenlp.trainer.Trainer.create_optimizer`` decides by a parameter's name whether it decays, and
``paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage3`` hands the optimizer slices named
"slice@" + name, which are in nobody's list.
"""

from __future__ import annotations

from typing import Any

PREFIX = "slice@"


def apply(optimizer: Any) -> None:
    """Let an optimizer decide for a slice as for the weight that it is cut from."""
    decays = getattr(optimizer, "_apply_decay_param_fun", None)
    if decays is not None:
        optimizer._apply_decay_param_fun = lambda name: decays(name.removeprefix(PREFIX))
