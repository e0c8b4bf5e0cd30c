"""PaddleNLP's quick LoRA fails in column-parallel layers: it calls a function of Paddle as older versions had it.

Upstream symbol: ``paddlenlp.peft.lora.lora_quick_layers._get_reduce_op``, imported from Paddle. Seen with paddlenlp
3.0.0b4 on paddlepaddle 3.3.1: ``ColumnQuickLora`` hands it the name of the calling function too, which it does not
take: ``TypeError: _get_reduce_op() takes 1 positional argument but 2 were given``.
"""

from __future__ import annotations

import inspect
from typing import Any


def apply() -> None:
    """Let the function be called with a name behind; more than one call does nothing more."""
    from paddlenlp.peft.lora import lora_quick_layers

    upstream = lora_quick_layers._get_reduce_op
    if len(inspect.signature(upstream).parameters) > 1:
        return

    def reduce_op(operation: Any, name: str = "") -> Any:
        return upstream(operation)

    lora_quick_layers._get_reduce_op = reduce_op
