import numpy as np

from paddlesft.training.loss import IGNORED
from paddlesft.training.micro_batches import MicroBatches, number_of_tokens, untrained, untrained_row

ROW = {"input_ids": [5, 6, 7], "labels": [IGNORED, 7, 2]}


def test_rows_become_micro_batches_and_the_last_one_is_smaller() -> None:
    batches = MicroBatches(lambda rows: list(rows), 2, stand_in=ROW)
    assert batches([1, 2, 3]) == [[1, 2], [3]]


def test_a_rank_without_rows_gets_one_that_trains_nothing() -> None:
    ((row,),) = MicroBatches(lambda rows: list(rows), 2, stand_in=ROW)([])
    assert row == {"input_ids": [5, 6, 7], "labels": [IGNORED] * 3} == untrained_row(ROW)
    assert ROW["labels"] == [IGNORED, 7, 2]


def test_a_batch_that_trains_nothing_keeps_its_shape() -> None:
    batch = {"input_ids": np.ones([2, 3]), "labels": np.asarray([[1, 2, IGNORED], [3, 4, 5]])}
    other = untrained(batch)
    assert (other["labels"] == IGNORED).all() and other["labels"].shape == (2, 3)
    assert other["input_ids"] is batch["input_ids"] and batch["labels"][0, 0] == 1


def test_padding_is_not_counted() -> None:
    ids = np.ones([2, 3], dtype="int64")
    assert number_of_tokens({"input_ids": ids}) == 6
    assert number_of_tokens({"input_ids": ids, "attention_mask": np.asarray([[1, 1, 0], [1, 0, 0]])}) == 3
    assert number_of_tokens({"input_ids": ids, "segment_ids": np.asarray([[1, 2, 2], [1, 0, 0]])}) == 4
