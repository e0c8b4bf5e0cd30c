"""visualdl 2.5.3 stores hyperparameters that are booleans as integers, which protobuf 7 refuses with a TypeError.

Upstream symbol: ``visualdl.LogWriter.add_hparams``; PaddleNLP's VisualDL callback calls it with all arguments.
"""

from __future__ import annotations

from typing import Any


def without_booleans(values: dict[str, Any]) -> dict[str, Any]:
    """Return hyperparameters with booleans as the words that a config file has for them."""
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in values.items()}


def apply() -> None:
    """Let ``LogWriter.add_hparams`` take booleans; more than one call does nothing more."""
    from visualdl import LogWriter

    upstream = LogWriter.add_hparams
    if getattr(upstream, "takes_booleans", False):
        return

    def add_hparams(self: Any, hparams_dict: dict[str, Any], *rest: Any, **named: Any) -> Any:
        return upstream(self, without_booleans(hparams_dict), *rest, **named)

    add_hparams.takes_booleans = True
    add_hparams.upstream = upstream
    LogWriter.add_hparams = add_hparams
