"""RMSNorm with a hand-written backward pass.

Upstream squares with ``pow(2)``, which calls the C library's ``pow`` for every element on CPU, and records six
operators. Here ``y = x r w`` with ``r = 1/sqrt(mean(x²) + eps)``; with ``g = dy w`` and ``x̂ = x r`` the gradient is
``dx = r (g - x̂ mean(g x̂))``. Only ``x`` and ``r`` are kept (Zhang and Sennrich 2019, arXiv:1910.07467).

Shapes: n tokens, h hidden size.
"""

from __future__ import annotations

from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer
from paddlenlp.transformers.llama.modeling import LlamaRMSNorm

from paddlesft.models.fast.primitives import broadcast_multiply, row_means


class RMSNormFunction(PyLayer):
    """``(x [..., h], weight [h], eps) -> [..., h]``."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows = x.reshape([-1, x.shape[-1]])
        scale = _C_ops.rsqrt(row_means(_C_ops.square(rows)) + epsilon)
        ctx.save_for_backward(rows, weight, scale)
        ctx.wants_weight = not weight.stop_gradient
        return broadcast_multiply(broadcast_multiply(rows, scale), weight).reshape(x.shape)

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, weight, scale = ctx.saved_tensor()
        grad_rows = grad.reshape(rows.shape)
        normed = broadcast_multiply(rows, scale)
        weighted = broadcast_multiply(grad_rows, weight)
        mean = row_means(_C_ops.multiply(weighted, normed))
        grad_x = broadcast_multiply(_C_ops.subtract(weighted, broadcast_multiply(normed, mean)), scale)
        grad_weight = _C_ops.sum(_C_ops.multiply(grad_rows, normed), [0], None, False) if ctx.wants_weight else None
        return grad_x.reshape(grad.shape), grad_weight


class FastRMSNorm(LlamaRMSNorm):
    """``LlamaRMSNorm`` that computes through ``RMSNormFunction``."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise float32 [b, s, h]."""
        return RMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon)
