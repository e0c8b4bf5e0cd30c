"""Where this rank stands in the layout of the running job, and what its files are called."""

from __future__ import annotations

import paddle.distributed as dist
from paddle.distributed.fleet.base import topology

# PaddleNLP's short names, in its order: model_state.tp00_pp01.pdparams, optimizer.tp00_pp01_shard00.pdopt
SHORT = {"tensor": "tp", "pipeline": "pp", "sharding": "shard"}


def own_place() -> dict[str, tuple[int, int]]:
    """Return this rank's number and the degree of every axis: data, pipeline, sharding, tensor."""
    layout = topology._HYBRID_PARALLEL_GROUP
    if layout is None:
        alone = dict.fromkeys(("pipeline", "sharding", "tensor"), (0, 1))
        return {"data": (dist.get_rank(), dist.get_world_size()), **alone}
    return {
        "data": (layout.get_data_parallel_rank(), layout.get_data_parallel_world_size()),
        "pipeline": (layout.get_stage_id(), layout.get_pipe_parallel_world_size()),
        "sharding": (layout.get_sharding_parallel_rank(), layout.get_sharding_parallel_world_size()),
        "tensor": (layout.get_model_parallel_rank(), layout.get_model_parallel_world_size()),
    }


def part_name(*axes: str) -> str:
    """Return this rank's part of file names, such as ``tp00_pp01``; empty where none of the axes is divided.

    Args:
        axes: that the files are divided along.
    """
    place = own_place()
    return "_".join(f"{SHORT[axis]}{place[axis][0]:02d}" for axis in SHORT if axis in axes and place[axis][1] > 1)


def is_first_copy(*axes: str) -> bool:
    """Whether this rank is the first of those that hold the same part, which differ in these axes only."""
    place = own_place()
    return all(place[axis][0] == 0 for axis in axes)
