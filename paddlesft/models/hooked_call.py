"""Computations with a layer's weights that its own ``forward`` does not offer, behind the layer's hooks.

Sharding keeps weights and gradients in order by hooks: in stage 3 a weight is whole only between the hooks before and
after its layer's forward pass. Whoever reads ``layer.weight`` elsewhere finds nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import paddle


@contextlib.contextmanager
def forward_replaced(layer: paddle.nn.Layer, compute: Callable[..., Any]) -> Iterator[None]:
    """Let ``compute`` be the forward pass of one layer for a while."""
    vars(layer)["forward"] = compute  # hides the class's method; PaddleNLP's __setattr__ would wrap it in another call
    try:
        yield
    finally:
        del vars(layer)["forward"]


@paddle.jit.not_to_static  # or tracing warns of the context manager; what is computed is traced either way
def call_with_hooks(layer: paddle.nn.Layer, compute: Callable[..., Any], *inputs: Any) -> Any:
    """Call a layer as if ``compute`` were its forward pass.

    Args:
        layer: its hooks run before and after.
        compute: inputs -> a tensor or a tuple of them; may use the layer's weights.
        inputs: handed to ``compute``.

    Returns:
        What ``compute`` returned, through the hooks.
    """
    with forward_replaced(layer, compute):
        return layer(*inputs)
