"""Rotary positions in config.json: base and scaling, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddlesft.errors import ModelDirectoryError

SCALING_NAMES = {"linear": "linear", "dynamic": "dynamic_ntk"}  # transformers' kinds -> PaddleNLP's
DEFAULT_THETA = 10000.0


def rope_to_paddle(config: dict[str, Any], kinds: Sequence[str], where: str) -> None:
    """Translate position scaling in place; transformers 5 keeps theta and scaling together in ``rope_parameters``.

    Args:
        config: content of config.json.
        kinds: the kinds of scaling that the Paddle model follows.
        where: names the file in errors.

    Raises:
        ModelDirectoryError: the Paddle model would ignore the scaling.
    """
    together = config.pop("rope_parameters", None) or {}
    scaling = config.pop("rope_scaling", None) or together
    config["rope_theta"] = float(together.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in kinds:
        raise ModelDirectoryError(
            f"{where}: position scaling {kind!r} is not covered. Known: {', '.join(kinds)}. In a copy of the directory "
            "without the entry, the model works up to the length that it was first trained for."
        )
    if kind == "llama3":
        config["rope_scaling"] = {key: value for key, value in scaling.items() if key != "rope_theta"}
    elif kind != "default":
        config["rope_scaling_type"] = SCALING_NAMES[kind]
        config["rope_scaling_factor"] = float(scaling["factor"])


def rope_to_hugging_face(config: Any, kinds: Sequence[str]) -> dict[str, Any]:
    """Return the entries of a Hugging Face config for the positions of a PaddleNLP config.

    Raises:
        ModelDirectoryError: the kind of scaling has no counterpart.
    """
    out: dict[str, Any] = {"rope_theta": config.rope_theta}
    if getattr(config, "rope_scaling", None) and "llama3" in kinds:
        return out | {"rope_scaling": config.rope_scaling}
    kind = getattr(config, "rope_scaling_type", None)
    back = {ours: theirs for theirs, ours in SCALING_NAMES.items() if theirs in kinds}
    if kind and kind not in back:
        known = ", ".join([*back, *(name for name in kinds if name not in SCALING_NAMES)])
        raise ModelDirectoryError(f"rope_scaling_type {kind!r} has no Hugging Face counterpart here. Known: {known}.")
    if kind:
        out["rope_scaling"] = {"rope_type": back[kind], "type": back[kind], "factor": config.rope_scaling_factor}
    return out
