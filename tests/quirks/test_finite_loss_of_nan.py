import math

import paddle
import paddle.nn.functional as F

from paddlesft.quirks.finite_loss_of_nan import with_nan_kept

TARGETS = paddle.to_tensor([1, 2, 3])


def test_upstream_still_loses_nan() -> None:
    """When this fails, Paddle reports NaN itself: remove the quirk and its use in training/loss.py."""
    logits = paddle.full([3, 96], float("nan"))
    assert math.isfinite(float(F.cross_entropy(logits, TARGETS, reduction="sum")))


def test_nan_and_infinity_reach_the_loss() -> None:
    for bad in ("nan", "inf", "-inf"):
        logits = paddle.randn([3, 96])
        logits[1, 5] = float(bad)
        assert not math.isfinite(float(with_nan_kept(F.cross_entropy(logits, TARGETS, reduction="sum"), logits)))


def test_a_finite_loss_and_its_gradient_stay() -> None:
    logits = paddle.randn([3, 96])
    logits.stop_gradient = False
    loss = F.cross_entropy(logits, TARGETS, reduction="sum")
    kept = with_nan_kept(loss, logits)
    assert float(kept) == float(loss)
    kept.backward()
    assert float((logits.grad.sum(-1)).abs().max()) < 1e-5 and float(logits.grad.abs().max()) > 0
