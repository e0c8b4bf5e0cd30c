"""What needs no ranks; the rest is compared with one process in tests/parallel/test_own_training.py."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage2 import GroupShardedStage2
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage3 import GroupShardedStage3

from paddlesft.training import sharded_passes
from paddlesft.training.loss import IGNORED, SupervisedLoss
from paddlesft.training.sharded_passes import ShardedPasses, StageThreePasses


@pytest.mark.parametrize(
    ("wrapper", "kind"), [(GroupShardedStage2, ShardedPasses), (GroupShardedStage3, StageThreePasses)]
)
def test_the_wrapper_decides(wrapper: type, kind: type) -> None:
    made = sharded_passes.sharded_passes(wrapper.__new__(wrapper))
    assert type(made(None, nullcontext, lambda loss: loss)) is kind
    assert sharded_passes.sharded_passes(None) is None
    assert sharded_passes.sharded_passes(paddle.nn.Linear(1, 1)) is None


def test_a_rank_runs_as_many_micro_batches_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = paddle.nn.Linear(1, 1), []

    def loss(model: paddle.nn.Layer, batch: dict[str, Any]) -> SupervisedLoss:
        trained = int((batch["labels"] != IGNORED).sum())
        seen.append(trained)
        return SupervisedLoss(model.weight.sum() * trained, trained)

    class Wrapper(paddle.nn.Layer):
        def forward(self) -> paddle.Tensor:
            return model()

    monkeypatch.setattr(sharded_passes, "supervised_loss", loss)
    monkeypatch.setattr(sharded_passes, "largest_over_ranks", lambda number: 3)
    passes = ShardedPasses(model, nullcontext, lambda loss: loss, Wrapper())
    total = passes.step([{"labels": np.asarray([[4, IGNORED, 5]])}], 0.5)
    assert seen == [2, 0, 0]
    assert total == pytest.approx(2 * float(model.weight)) and float(model.weight.grad) == pytest.approx(1.0)
