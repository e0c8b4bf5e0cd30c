"""What clipping multiplied gradients by is noted for every optimizer step, and the step itself is unchanged."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from paddlesft.training import clip_record


@pytest.fixture()
def factors(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    for kind in clip_record.KINDS:  # put back behind the test
        monkeypatch.setattr(kind, "_dygraph_clip", kind._dygraph_clip)
    noted: list[float] = []
    clip_record.record_clipping(noted.append)
    return noted


def test_the_factor_of_each_step_is_noted(factors: list[float]) -> None:
    weight = paddle.create_parameter([2], "float32", default_initializer=paddle.nn.initializer.Constant(0.0))
    clip = paddle.nn.ClipGradByGlobalNorm(1.0)
    optimizer = paddle.optimizer.SGD(1.0, parameters=[weight], grad_clip=clip)
    for gradient in ([3.0, 4.0], [0.3, 0.4], [0.0, 0.0]):
        (weight * paddle.to_tensor(gradient)).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
    assert factors[:2] == pytest.approx([0.2, 1.0])
    assert math.isnan(factors[2])
    np.testing.assert_allclose(weight.numpy(), [-0.9, -1.2], rtol=1e-5)  # clipped to [.6, .8], then [.3, .4]


def test_every_kind_of_clipping_is_watched(factors: list[float]) -> None:
    names = {kind.__name__ for kind in clip_record.KINDS}
    assert names == {"ClipGradByGlobalNorm", "HybridParallelClipGrad", "GroupShardedClipGrad"}
    assert all(hasattr(kind._dygraph_clip, "__wrapped__") for kind in clip_record.KINDS)
