"""Sharding stages 2 and 3 accept tensors in CPU memory.

Upstream: ``paddle.distributed.sharding.group_sharded_parallel`` and the modules
``paddle.distributed.fleet.meta_parallel.sharding.group_sharded_*`` (paddlepaddle 3.3.1). They assert a build with CUDA,
take the number behind the colon of ``paddle.get_device()``, which is "cpu" here, and switch to "gpu:0" and back around
some statements. None of the work inside needs a GPU. Stage 1 has none of these checks.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import paddle
from paddle.base import core

SHARDING = "paddle.distributed.fleet.meta_parallel.sharding."
MODULES = (
    "group_sharded_optimizer_stage2",
    "group_sharded_stage2",
    "group_sharded_stage3",
    "group_sharded_storage",
    "group_sharded_utils",
)


class Substitute(ModuleType):
    """A module some of whose names are answered differently; for the one module that holds it as a global.

    Args:
        module: answers for everything else.
        answers: the names that differ.
    """

    def __init__(self, module: ModuleType, **answers: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(answers, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


def accept_cpu_tensors() -> None:
    """Let the modules of stages 2 and 3 believe that they run on the device that they ask for."""
    entry = importlib.import_module("paddle.distributed.sharding.group_sharded")
    entry.paddle = Substitute(paddle, get_device=lambda: "gpu:0")  # "only support gpu, xpu and custom_device now"
    for name in MODULES:
        _settle(importlib.import_module(SHARDING + name))
    storage = importlib.import_module(SHARDING + "group_sharded_storage")
    add_rank_params = storage.ParamStorage.add_rank_params

    def add_without_copy(self: Any, parameters: Any, alignment: Any, convert_gpu: bool = True) -> None:
        # param.cpu() is param itself here, and the next statement clears it
        add_rank_params(self, parameters, alignment, convert_gpu=False)

    storage.ParamStorage.add_rank_params = add_without_copy


def _settle(module: ModuleType) -> None:
    names = {"get_device": lambda: "cpu:0", "set_device": lambda *_: None}  # with the number that is split off
    answers = {
        "paddle": Substitute(paddle, device=Substitute(paddle.device, **names), **names),
        "core": Substitute(core, is_compiled_with_cuda=lambda: True),
        "device_guard": _same_device,
        "cvt_to_device": lambda tensor, *_: tensor,
    }
    for name, answer in answers.items():
        if hasattr(module, name):
            setattr(module, name, answer)


@contextlib.contextmanager
def _same_device(*_: Any, **__: Any) -> Iterator[None]:
    yield
