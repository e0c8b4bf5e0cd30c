"""Choosing the device."""

from __future__ import annotations

import paddle
import pytest

from paddlesft.errors import UserError
from paddlesft.inference.device import use_device

WITHOUT_GPU = pytest.mark.skipif(paddle.device.is_compiled_with_cuda(), reason="this paddle build has GPU support")


def test_auto_takes_what_is_there() -> None:
    assert use_device("auto") == ("gpu:0" if paddle.device.is_compiled_with_cuda() else "cpu")
    assert use_device("cpu") == "cpu"


@WITHOUT_GPU
@pytest.mark.parametrize("name", ["gpu", "gpu:3", "tpu"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(name: str) -> None:
    with pytest.raises(UserError, match=rf"device: '{name}' cannot be used \(.+\). Usable here: auto, cpu\."):
        use_device(name)
