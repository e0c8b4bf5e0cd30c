"""Forward and backward passes of a model whose gradients (stage 2) or weights (stage 3) are divided among ranks.

Method: ZeRO, arXiv:1910.02054, in Paddle's ``GroupShardedStage2`` and ``GroupShardedStage3``. Both work by hooks, of
weights and of layers, in which the ranks meet: every rank has to run the same layers equally often, whether it has rows
or not. What they leave to the caller is done here:

* a rank with fewer micro-batches than another runs the rest with a batch that trains nothing;
* in stage 3, a rank that scores fewer tokens than another calls the head less often, and a reply is generated token by
  token: the weights concerned are put together before, and divided again after;
* in stage 3, frozen weights that a backward pass put together are divided again (Paddle 3.3.1 does so for trained ones
  only, so that LoRA would hold the whole base from its first step on).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import paddle
from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_stage3 as stage3
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage2 import GroupShardedStage2
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage3 import GroupShardedStage3

from paddlesft.models.decoders import decoder_of
from paddlesft.models.hooked_call import forward_replaced
from paddlesft.training.loss import IGNORED, hidden_states, supervised_loss
from paddlesft.training.micro_batches import untrained
from paddlesft.training.passes import Passes
from paddlesft.training.ranks import largest_over_ranks

SHARDED = (GroupShardedStage2, GroupShardedStage3)


class ShardedPasses(Passes):
    """Runs batches through a model in ``GroupShardedStage2``: weights are whole, gradients divided.

    Args:
        model: the bare model.
        precision: as for ``Passes``.
        scale: as for ``Passes``.
        wrapper: Paddle's wrapper around it.
    """

    def __init__(
        self,
        model: paddle.nn.Layer,
        precision: Callable[[], AbstractContextManager[Any]],
        scale: Callable[[paddle.Tensor], paddle.Tensor],
        wrapper: GroupShardedStage2 | GroupShardedStage3,
    ) -> None:
        super().__init__(model, precision, scale)
        self.wrapper = wrapper

    def step(self, batches: Sequence[Mapping[str, Any]], factor: float) -> float:
        """As ``Passes.step``; all ranks run as many micro-batches as the one that has most."""
        missing = largest_over_ranks(len(batches)) - len(batches)
        return super().step([*batches, *[untrained(batches[-1])] * missing], factor)

    def loss_sum(self, batch: Mapping[str, Any]) -> paddle.Tensor:
        """Compute the summed loss behind the wrapper's forward pass, which prepares its buffers and hooks."""
        with forward_replaced(self.model, lambda: supervised_loss(self.model, batch).loss_sum):
            return self.wrapper()


class StageThreePasses(ShardedPasses):
    """Runs batches through a model in ``GroupShardedStage3``: weights are whole while their layer runs only."""

    def backward(self, loss: paddle.Tensor) -> None:
        """As ``Passes.backward``; then no rank holds more than its part again."""
        super().backward(loss)
        self._divide(self.model.parameters())

    def score(self, batch: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        """As ``Passes.score``; a batch without trained tokens goes through the model too, for the other ranks."""
        with self._whole(decoder_of(self.model).head.parameters()):
            if (np.asarray(batch["labels"]) != IGNORED).any():
                return super().score(batch)
            with self.precision(), paddle.no_grad():
                hidden_states(self.model, batch)
            return np.zeros([0], dtype=np.float32), 0

    def whole_model(self) -> AbstractContextManager[None]:
        """Hold all weights for a while, so that layers may be called as often as this rank likes."""
        return self._whole(self.model.parameters())

    @contextmanager
    def _whole(self, parameters: Sequence[paddle.Tensor]) -> Iterator[None]:
        parts = self._divided(parameters)
        flow = self.wrapper._task_flow
        for parameter in parts:
            _, task = flow.full_param.get(parameter.name, (None, None))
            if parameter.status != "all" and task is not None:
                task.wait()  # on its way already, for the layer that would have run next
        stage3._allgather_buffer(
            parts,
            self.wrapper._group,
            param2buffer_size=self.wrapper._param2buffer_size,
            use_calc_stream=True,
            task_flow=flow,
            sync_wait=True,
            offload=self.wrapper._offload,
        )
        try:
            yield
        finally:
            self._divide(parts)

    def _divided(self, parameters: Sequence[paddle.Tensor]) -> list[paddle.Tensor]:
        """Those of some weights that are divided: Paddle leaves small ones whole."""
        return [p for p in parameters if p.name in self.wrapper._param2buffer_size]

    def _divide(self, parameters: Sequence[paddle.Tensor]) -> None:
        whole = [p for p in self._divided(parameters) if p.status == "all"]
        for parameter in whole:
            parameter.use_count = 1  # layers and look-ahead have each counted themselves
        wrapper = self.wrapper
        stage3._release_param(whole, wrapper._param2buffer, wrapper._rank, wrapper._task_flow, wrapper._offload)


def sharded_passes(wrapper: paddle.nn.Layer | None) -> Callable[..., Passes] | None:
    """Return what makes the passes of a model in such a wrapper, from (model, precision, scale); None for others."""
    if not isinstance(wrapper, SHARDED):
        return None
    kind = StageThreePasses if isinstance(wrapper, GroupShardedStage3) else ShardedPasses
    return partial(kind, wrapper=wrapper)
