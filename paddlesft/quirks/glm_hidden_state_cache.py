"""PaddleNLP's GLM caches hidden states, so that every new token projects all earlier ones anew, in every layer.

Upstream symbol: ``paddlenlp.transformers.glm.modeling.GLMAttention._core_attention`` (seen in paddlenlp 3.0.0b4). Such
a cache has no place for the keys and values of a tuned prefix either. Here the projection of each layer is replaced by
one that puts keys and values of earlier calls, or of a prefix, before its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import paddle

    KeysAndValues = tuple[paddle.Tensor, paddle.Tensor]

PROJECTIONS = ("_core_attention", "_core_parallel_attention")


class CachingProjection:
    """Stands in for the method of one attention layer that makes queries, keys and values.

    Args:
        project: the method.

    Attributes:
        past: keys and values [b, heads, p, head size] that go before a call's own; None: there are none.
        collects: whether ``newest`` is kept.
        newest: keys and values [b, heads, p + s, head size] of the last call.
    """

    def __init__(self, project: Callable[..., tuple[paddle.Tensor, ...]]) -> None:
        self.project = project
        self.past: KeysAndValues | None = None
        self.collects = False
        self.newest: KeysAndValues | None = None

    def __call__(self, hidden_states: paddle.Tensor, cache: paddle.Tensor | None = None) -> tuple[paddle.Tensor, ...]:
        """Return queries [b, heads, s, head size], and keys and values of what is past and of these tokens."""
        import paddle

        queries, keys, values = self.project(hidden_states, cache)
        if self.past is not None:
            keys, values = (paddle.concat([old, new], axis=2) for old, new in zip(self.past, (keys, values)))
        if self.collects:
            self.newest = keys, values
        return queries, keys, values


def caching_projection(attention: paddle.nn.Layer) -> CachingProjection:
    """Return what stands in for an attention layer's projection, after putting it there if it is not there yet."""
    name = PROJECTIONS[attention.config.tensor_parallel_degree > 1]
    if not isinstance(attention.__dict__.get(name), CachingProjection):
        attention.__dict__[name] = CachingProjection(getattr(attention, name))
    return attention.__dict__[name]
