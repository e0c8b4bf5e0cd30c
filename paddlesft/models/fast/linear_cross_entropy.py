"""The output layer and the cross entropy as one step that never holds all logits, nor their gradient.

Rows are taken in chunks. With ``P`` the softmax of a chunk, ``W`` the head's weight and ``t`` the targets, the gradient
of the row losses with respect to the hidden states is ``P W - W[t]``, scaled by row: it is computed while ``P`` is at
hand, so the backward pass only scales it. ``P`` is kept where the weight is trained.

Shapes: n rows, h hidden size, v vocabulary.
"""

from __future__ import annotations

import paddle
from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer
from paddlenlp.transformers.llama.modeling import LlamaLMHead

from paddlesft.models.fast.primitives import broadcast_multiply, matmul, row_means
from paddlesft.models.hooked_call import call_with_hooks

# Rows whose logits are held at a time: enough for the products to run at full speed.
CHUNK_ROWS = 256


class LinearCrossEntropy(PyLayer):
    """``(rows [n, h], weight [v, h] (vocabulary_first) or [h, v], targets int64 [n]) -> losses [n]``."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, targets: Tensor, vocabulary_first: bool, differentiate: bool):
        wants_rows = differentiate and not rows.stop_gradient
        wants_weight = differentiate and not weight.stop_gradient
        losses, gradients, softmaxes = [], [], []
        for start in range(0, rows.shape[0], CHUNK_ROWS):
            part = _C_ops.slice(rows, [0], [start], [start + CHUNK_ROWS], [1], [])
            label = _C_ops.slice(targets, [0], [start], [start + CHUNK_ROWS], [1], [])
            logits = matmul(part, weight, transpose_y=vocabulary_first)
            softmax, loss = _C_ops.cross_entropy_with_softmax(logits, label.unsqueeze(-1), False, True, True, -100, -1)
            # Paddle's kernel turns a row of NaN into a finite loss; a factor of 0 lets NaN through.
            losses.append(_C_ops.add(loss, _C_ops.scale(row_means(logits), 0.0, 0.0, True)).reshape([-1]))
            del logits
            if wants_rows:
                expected = matmul(softmax, weight, transpose_y=not vocabulary_first)
                found = paddle.index_select(weight, label, axis=0 if vocabulary_first else 1)
                gradients.append(_C_ops.subtract(expected, found if vocabulary_first else found.T))
            if wants_weight:
                softmaxes.append(softmax)
        ctx.wants = (wants_rows, wants_weight, vocabulary_first, weight.shape)
        ctx.save_for_backward(rows, targets, *gradients, *softmaxes)
        return paddle.concat(losses)

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, targets, *kept = ctx.saved_tensor()
        wants_rows, wants_weight, vocabulary_first, weight_shape = ctx.wants
        scale = grad.unsqueeze(-1)
        grad_rows = grad_weight = None
        if wants_rows:
            count = len(kept) // (1 + wants_weight)
            grad_rows = broadcast_multiply(paddle.concat(kept[:count]), scale)
            kept = kept[count:]
        if wants_weight:
            scaled = broadcast_multiply(rows, scale)
            softmax = paddle.concat(kept)
            if vocabulary_first:
                grad_weight = matmul(softmax, scaled, transpose_x=True)
                grad_weight = paddle.scatter_nd_add(grad_weight, targets.unsqueeze(-1), -scaled)
            else:
                found = paddle.scatter_nd_add(paddle.zeros(weight_shape[::-1]), targets.unsqueeze(-1), scaled)
                grad_weight = matmul(scaled, softmax, transpose_x=True) - found.T
        return grad_rows, grad_weight, None


class FastLMHead(LlamaLMHead):
    """``LlamaLMHead`` that also scores targets without giving the logits away."""

    def token_losses(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Compute the cross entropy of each row.

        Args:
            rows: float32 [n, h]; hidden states after the final norm.
            targets: int64 [n]; the right token of each row.

        Returns:
            float32 [n], in nats.
        """

        def losses(rows: Tensor, targets: Tensor) -> Tensor:
            return LinearCrossEntropy.apply(rows, self.weight, targets, self.transpose_y, paddle.is_grad_enabled())

        return call_with_hooks(self, losses, rows, targets)
