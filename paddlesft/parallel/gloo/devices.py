"""Places where paddle asks for a GPU though nothing there needs one (paddlepaddle 3.3.1)."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.distributed as dist
from paddle.base import core
from paddle.distributed.fleet.meta_parallel import tensor_parallel
from paddle.distributed.fleet.utils import hybrid_parallel_util, tensor_fusion_helper

NCCL_WITH_AVERAGE = 21000  # version 2.10: paddle then leaves ReduceOp.AVG to the group


def remove_device_checks() -> None:
    """Let Fleet start and train with tensors in CPU memory."""
    _give_a_device_id()
    _broadcast_inputs_of_tensor_parallel_ranks()
    _leave_averages_to_the_group()
    _need_no_synchronization()
    _align_fused_tensors()


def _give_a_device_id() -> None:
    """``paddle.distributed.ParallelEnv.device_id`` raises AttributeError: ``__init__`` sets it for GPUs only.

    ``TrainingArguments`` and Fleet's pipeline read it.
    """
    dist.ParallelEnv.device_id = property(lambda self: getattr(self, "_device_id", 0))


def _broadcast_inputs_of_tensor_parallel_ranks() -> None:
    """``hybrid_parallel_util.broadcast_input_data`` asserts "Only support xpu, gpu and custom_device now".

    ``fleet.meta_parallel.tensor_parallel`` imports it by name.
    """

    def broadcast_input_data(hcg: Any, *inputs: Any, **options: Any) -> tuple[Any, Any]:
        place = core.CPUPlace()
        if inputs:
            inputs = hybrid_parallel_util._broadcast_nested_data(hcg, "cpu", place, inputs)
        if options:
            options = hybrid_parallel_util._broadcast_nested_data(hcg, "cpu", place, options)
        return inputs, options

    hybrid_parallel_util.broadcast_input_data = tensor_parallel.broadcast_input_data = broadcast_input_data


def _leave_averages_to_the_group() -> None:
    """``paddle.distributed.all_reduce(op=AVG)`` asks ``core.nccl_version``, which a CPU build does not have."""
    if not hasattr(core, "nccl_version"):
        core.nccl_version = lambda: NCCL_WITH_AVERAGE


def _need_no_synchronization() -> None:
    """``paddle.device.synchronize`` raises for the CPU, where every operation is done when it returns.

    Sharding's and the pipeline's optimizers call it.
    """
    upstream = paddle.device.synchronize

    def synchronize(device: Any = None) -> None:
        if device is not None or paddle.get_device() != "cpu":
            upstream(device)

    paddle.device.synchronize = synchronize


def _align_fused_tensors() -> None:
    """``tensor_fusion_helper.get_current_device_type`` asserts a GPU; its answer only selects an alignment in bytes."""
    tensor_fusion_helper.get_current_device_type = lambda: "gpu"
