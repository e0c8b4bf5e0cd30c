"""``silu(gate) * up`` with a backward pass that keeps the two inputs only.

Paddle's own ``swiglu`` evaluates the exponential in a scalar loop on CPU.
With ``σ = sigmoid(g)`` and ``a = g σ``: ``d up = dh a``, ``d gate = dh up (σ + a (1 - σ))``
(Shazeer 2020, arXiv:2002.05202).

Shapes: n tokens, m intermediate size.
"""

from __future__ import annotations

from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer

from paddlesft.models.fast.primitives import sigmoid, swish


class SwiGLUFunction(PyLayer):
    """``(gate [n, m], up [n, m]) -> [n, m]``."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _C_ops.multiply_(swish(gate), up)

    @staticmethod
    def backward(ctx, grad: Tensor):
        gate, up = ctx.saved_tensor()
        sigma = sigmoid(gate)
        activated = _C_ops.multiply(gate, sigma)
        slope = _C_ops.scale(sigma, -1.0, 1.0, True)
        slope = _C_ops.add_(_C_ops.multiply_(slope, activated), sigma)
        grad_gate = _C_ops.multiply_(_C_ops.multiply_(slope, grad), up)
        return grad_gate, _C_ops.multiply_(activated, grad)
