"""PaddleNLP's OPT has every attribute: what it lacks is None, and ``hasattr`` is always true.

``OPTForCausalLM.__getattr__`` ends with ``config[name]``, which never fails. With ``recompute: true`` the trainer asks
for ``no_sync``, gets None and calls it. Seen with paddlenlp 3.0.0b4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def lack_unknown_attributes(model: Any) -> None:
    """Let an OPT model, by its class, raise AttributeError for what neither it nor its config has."""
    lookup = type(model).__getattr__
    if not hasattr(lookup, "original"):
        type(model).__getattr__ = _mended(lookup)


def _mended(lookup: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    def attribute(self: Any, name: str) -> Any:
        found = lookup(self, name)
        if found is None and not hasattr(self.config, name) and not _holds_none(self, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return found

    attribute.original = lookup
    return attribute


def _holds_none(model: Any, name: str) -> bool:
    """Whether a layer, weight or buffer of this name was set to None."""
    return any(name in vars(layer).get(kind, {}) for layer in (model, model.opt)
               for kind in ("_sub_layers", "_parameters", "_buffers"))  # fmt: skip
