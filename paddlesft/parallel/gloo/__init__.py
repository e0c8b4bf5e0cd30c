"""Fleet's tensor, pipeline and sharding parallelism on CPU ranks: everything that paddle's gloo backend lacks.

``install()`` is called once in every rank, before ``TrainingArguments`` are made or ``fleet.init`` is called::

    from paddlesft.parallel import gloo
    gloo.install()

It changes nothing in a process that computes on a GPU or that is alone. What it replaces in paddle, each with the
upstream symbol, the version seen and the reason at the head of its file:

* ``transport``: connections between the ranks, with an upper limit on waiting that names the rank that is missing;
* ``process_group``: the collectives, and sends and receives for pipelines;
* ``groups``: the creation of process groups;
* ``large_sums``: what is left to Paddle's own group, where nothing but rows is divided;
* ``tensor_parallel_ops``: operators of tensor parallelism without a CPU kernel;
* ``data_parallel``: the averaging of gradients in ``paddle.DataParallel``;
* ``devices``, ``sharding``: places that ask for a GPU without needing one.

Paddle goes on calling the backend "gloo". The collectives take bfloat16 and float16 too (they sum in float32), but the
models' other operators have no half precision kernels on a CPU: ``training.arguments`` and ``models.load`` turn it into
float32 and say so. What a run on CPU ranks shows is the layout, the numbers and the checkpoints; not memory, speed,
NCCL, fused kernels or the rounding of half precision.
"""

from __future__ import annotations

import os

import paddle

from paddlesft.parallel.gloo.transport import MissingRank

__all__ = ["MissingRank", "install", "installed"]

_state = {"installed": False}


def installed() -> bool:
    """Return whether this process's paddle uses the CPU backend."""
    return _state["installed"]


def install(rows_only: bool = False) -> bool:
    """Let paddle's distributed training work between CPU ranks.

    Args:
        rows_only: the ranks divide nothing but the rows (plain data parallelism): sums of all of them have to be fast.

    Returns:
        Whether the backend is in use; False, with nothing changed, on a GPU and in a process that is alone.

    Raises:
        RuntimeError: paddle has made its process groups already.
    """
    if installed():
        return True
    if int(os.environ.get("PADDLE_TRAINERS_NUM") or 1) < 2 or paddle.get_device() != "cpu":
        return False
    if paddle.distributed.is_initialized():
        raise RuntimeError("gloo.install() has to be called before paddle.distributed is initialised.")
    from paddlesft.parallel.gloo import data_parallel, devices, groups, sharding, tensor_parallel_ops

    os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
    groups.replace_group_creation(large_sums=rows_only)
    tensor_parallel_ops.replace_operators()
    data_parallel.replace_reducer()
    devices.remove_device_checks()
    sharding.accept_cpu_tensors()
    _state["installed"] = True
    return True
