"""How many GPUs a run would use, without touching them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from paddlesft.errors import ConfigError

GPU_BUILD = "paddlepaddle-gpu"


def visible_gpus(environ: Mapping[str, str] | None = None) -> int:
    """Count the GPUs that paddle would see.

    Args:
        environ: the environment variables; those of this process when None.

    Returns:
        0 with a CPU build of paddle. With a GPU build the entries of ``CUDA_VISIBLE_DEVICES`` up to the first that
        hides the rest, or what the driver says (no context is made on any device).
    """
    environ = os.environ if environ is None else environ
    try:
        version(GPU_BUILD)
    except PackageNotFoundError:
        return 0
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        import paddle

        return paddle.device.cuda.device_count()
    names = [name.strip() for name in chosen.split(",")]
    return next((place for place, name in enumerate(names) if not name or name.startswith("-")), len(names))


def require_gpus(device: str, gpus: int) -> None:
    """Refuse to train on a processor where a GPU was asked for by name.

    Args:
        device: value of the key ``device``.
        gpus: how many there are, of ``visible_gpus``.

    Raises:
        ConfigError: there is none.
    """
    if device.partition(":")[0] == "gpu" and gpus == 0:
        raise ConfigError(
            f"device: found {device!r}, but paddle sees no GPU here; allowed here: auto or cpu. On a machine with GPUs "
            "`paddlesft doctor` says what is missing."
        )
