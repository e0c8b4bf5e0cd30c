"""Processes that share each layer of one model, outside of training."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.distributed import fleet

from paddlesft.errors import UserError
from paddlesft.models.families import family_of
from paddlesft.parallel import gloo


def start_ranks() -> tuple[int, int]:
    """Let the processes that a launcher has started share each layer.

    Returns:
        How many there are, and which of them this is.
    """
    gloo.install()
    ranks = paddle.distributed.get_world_size()
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {"dp_degree": 1, "mp_degree": ranks, "pp_degree": 1, "sharding_degree": 1}
    fleet.init(is_collective=True, strategy=strategy)
    return ranks, paddle.distributed.get_rank()


def refuse_indivisible(config: Any, ranks: int, otherwise: str) -> None:
    """Refuse a model whose heads cannot be shared evenly among the ranks.

    Args:
        config: PaddleNLP's config of the model.
        ranks: how many there are.
        otherwise: what can be done without a launcher, e.g. "export the whole model".
    """
    family = family_of(config)
    heads, kv_heads = family.num_heads(config), family.prefix_kv_heads(config)
    if heads % ranks or kv_heads % ranks:
        raise UserError(
            f"{heads} attention heads and {kv_heads} key/value heads cannot be shared evenly among {ranks} ranks. "
            f"Start a number of ranks that divides both (--nproc_per_node or --gpus), or {otherwise} without "
            "paddle.distributed.launch."
        )
