"""Which device a model runs on."""

from __future__ import annotations

import paddle

from paddlesft.errors import UserError


def use_device(name: str = "auto") -> str:
    """Choose the device that models are loaded to from now on.

    Args:
        name: "auto" takes an accelerator when there is one; else a name of paddle, such as "cpu", "gpu" or "gpu:1".

    Returns:
        The device in paddle's spelling, such as "gpu:0".

    Raises:
        UserError: this machine or this build of paddle does not have it.
    """
    has_gpu = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    wanted = ("gpu" if has_gpu else "cpu") if name == "auto" else name
    try:
        paddle.device.set_device(wanted)
    except (ValueError, RuntimeError, OSError) as error:
        there = [f"gpu:{i}" for i in range(paddle.device.cuda.device_count())] if has_gpu else []
        raise UserError(
            f"device: {name!r} cannot be used ({str(error).strip().splitlines()[0]}). Usable here: "
            f"{', '.join(['auto', 'cpu', *there])}."
        ) from error
    return paddle.device.get_device()
