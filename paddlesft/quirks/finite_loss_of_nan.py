"""Paddle's cross entropy on CPU turns NaN logits into a finite loss, log(classes) (seen in paddlepaddle 3.3.1).

Upstream symbol: ``paddle.nn.functional.cross_entropy``; its vectorised softmax kernel (rows of at least one vector
register) loses the NaN in a comparison. A model whose activations have become NaN then seems to train on with a
constant loss, while its gradients destroy the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import paddle


def with_nan_kept(loss: paddle.Tensor, logits: paddle.Tensor) -> paddle.Tensor:
    """Return the loss, or NaN when a logit it was made from is not finite.

    Args:
        loss: scalar.
        logits: float32 array of any shape; no gradient flows through this check.
    """
    return loss + 0.0 * logits.detach().sum()
