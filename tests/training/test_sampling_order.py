import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlesft.training.sampling_order import StepSampler


@given(
    rows=st.integers(1, 60), size=st.integers(1, 4), micro=st.integers(1, 4), ranks=st.integers(1, 3),
    grouped=st.booleans(), epoch=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_every_row_comes_once_and_many_processes_take_the_steps_of_one(
    rows: int, size: int, micro: int, ranks: int, grouped: bool, epoch: int
) -> None:
    lengths = [(i * 37) % 101 + 1 for i in range(rows)] if grouped else None
    alone = StepSampler(rows, size, micro * ranks, seed=5, lengths=lengths)
    shared = [StepSampler(rows, size, micro, 5, ranks, rank, lengths=lengths) for rank in range(ranks)]
    for sampler in (alone, *shared):
        sampler.set_epoch(epoch)
    steps = list(alone)
    assert sorted(row for step in steps for row in step) == list(range(rows))
    assert len(steps) == len(alone) == len(shared[0])
    assert all(len(step) == alone.rows_per_step for step in steps[:-1])
    for whole, *parts in zip(steps, *map(list, shared)):
        assert sorted(whole) == sorted(row for part in parts for row in part)


def test_micro_batches_are_dealt_to_the_ranks_in_turn() -> None:
    whole = next(iter(StepSampler(8, 2, 4, seed=1)))
    parts = [next(iter(StepSampler(8, 2, 2, 1, num_replicas=2, rank=rank))) for rank in (0, 1)]
    assert parts == [whole[0:2] + whole[4:6], whole[2:4] + whole[6:8]]


def test_epochs_and_seeds_have_their_own_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = StepSampler(30, 1, 1, seed)
        sampler.set_epoch(epoch)
        return [row for step in sampler for row in step]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_the_last_step_of_an_epoch_is_smaller_or_left_out() -> None:
    assert [len(step) for step in StepSampler(10, 2, 2, seed=0)] == [4, 4, 2]
    assert [len(step) for step in StepSampler(10, 2, 2, seed=0, drop_last=True)] == [4, 4]
    assert [len(step) for step in StepSampler(3, 2, 2, seed=0, drop_last=True)] == [3]  # or there would be no step


def test_length_grouping_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 200).tolist()

    def padded(sampler: StepSampler) -> int:
        return sum(max(lengths[row] for row in step) * len(step) for step in sampler)

    grouped = padded(StepSampler(200, 4, 1, seed=3, lengths=lengths))
    assert grouped < 1.15 * sum(lengths) < padded(StepSampler(200, 4, 1, seed=3))


@pytest.mark.parametrize("shuffle", [True, False])
def test_without_shuffling_the_files_order_stays(shuffle: bool) -> None:
    order = [row for step in StepSampler(20, 3, 1, seed=0, shuffle=shuffle) for row in step]
    assert (order == list(range(20))) is not shuffle
