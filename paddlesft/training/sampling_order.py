"""Which rows make up which optimizer step, on which rank: one order for one process and for many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from paddle.io import DistributedBatchSampler

from paddlesft.data.grouping import length_grouped_indices


class StepSampler(DistributedBatchSampler):
    """Yields, for every optimizer step of an epoch, the row indices that this rank works through.

    A step's rows are cut from one permutation that depends on the seed and the epoch alone. They are dealt to the ranks
    micro-batch by micro-batch, so that 8 micro-batches on one process and 2 on each of 4 hold the same rows. The last
    step of an epoch takes what is left: it is smaller, never carried into the next epoch.

    Args:
        num_rows: rows of the data set.
        micro_batch_size: rows of one forward pass on one rank.
        micro_batches: forward passes of one rank per optimizer step (gradient accumulation).
        seed: seed of the order.
        num_replicas: ranks that share the data.
        rank: this rank.
        shuffle: False keeps the file's order.
        lengths: tokens of every row; given, rows of similar length share a step (length grouping).
        drop_last: leave out an epoch's last step when it is smaller than the others.
    """

    def __init__(
        self,
        num_rows: int,
        micro_batch_size: int,
        micro_batches: int,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.num_rows = num_rows
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.shuffle = shuffle
        self.lengths = lengths
        self.rows_per_step = micro_batch_size * micro_batches * num_replicas
        self.drop_last = drop_last and num_rows >= self.rows_per_step
        self.batch_size = micro_batch_size * micro_batches  # rows of one item, as paddle's DataLoader asks for it
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the optimizer steps of one epoch."""
        return self.num_rows // self.rows_per_step if self.drop_last else -(-self.num_rows // self.rows_per_step)

    def steps(self) -> list[np.ndarray]:
        """Return the rows of every step of the current epoch, over all ranks."""
        if self.lengths is not None:
            seed = self.seed * 1_000_003 + self.epoch
            order = np.asarray(length_grouped_indices(self.lengths, self.rows_per_step, seed))
        elif self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_rows)
        else:
            order = np.arange(self.num_rows)
        return [order[i * self.rows_per_step : (i + 1) * self.rows_per_step] for i in range(len(self))]

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            micro = [step[i : i + self.micro_batch_size] for i in range(0, len(step), self.micro_batch_size)]
            yield [int(row) for batch in micro[self.rank :: self.num_replicas] for row in batch]
