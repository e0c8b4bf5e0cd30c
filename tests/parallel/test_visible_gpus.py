"""GPUs are counted as CUDA counts them, without touching them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from typing import Any

import paddle
import pytest

from paddlesft.parallel import visible_gpus as room


@pytest.mark.parametrize(
    ("chosen", "number"), [("0,1,2", 3), ("3", 1), ("", 0), ("-1", 0), ("0,-1,2", 1), ("GPU-ab, GPU-cd", 2), (None, 5)]
)
def test_gpus_are_counted_as_cuda_does(monkeypatch: pytest.MonkeyPatch, chosen: str | None, number: int) -> None:
    monkeypatch.setattr(room, "version", lambda name: "3.3.1")
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 5)
    assert room.visible_gpus({} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}) == number


def test_a_cpu_build_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(room, "version", missing)
    assert room.visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}) == 0
