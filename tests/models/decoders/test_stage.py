"""What the first layer of a pipeline is given. That it is right: ``tests/parallel/test_pipeline_training.py``."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from paddlesft.errors import UserError
from paddlesft.models.decoders.stage import stage_inputs

GPT = SimpleNamespace(config=SimpleNamespace(model_type="gpt", max_position_embeddings=4))
LLAMA = SimpleNamespace(config=SimpleNamespace(model_type="llama", max_position_embeddings=4))


def test_padded_rows() -> None:
    inputs = stage_inputs(GPT, {"input_ids": np.array([[5, 6, 0]]), "attention_mask": np.array([[1, 1, 0]])})
    assert inputs["position_ids"].tolist() == [[0, 1, 1]] and inputs["position_ids"].dtype == paddle.int64
    assert inputs["attention_mask"].dtype == paddle.bool  # llama's and qwen2's layers go by the dtype
    assert inputs["attention_mask"].tolist() == [[[[True, False, False], [True, True, False], [True, True, False]]]]


def test_packed_rows_may_be_wider_than_the_table() -> None:
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    positions = np.array([[0, 1, 2, 0, 1, 0]])
    inputs = stage_inputs(GPT, {"input_ids": segments, "segment_ids": segments, "position_ids": positions})
    seen = inputs["attention_mask"].numpy()[0, 0]
    assert seen[4].tolist() == [False, False, False, True, True, False] and not seen[5].any()
    assert inputs["position_ids"].tolist() == positions.tolist()


def test_rows_behind_the_end_of_the_positions_are_refused() -> None:
    row = {"input_ids": np.ones([1, 5], "int64"), "attention_mask": np.ones([1, 5], "int64")}
    with pytest.raises(UserError, match=r"A row has 5 tokens, but this model knows 4 positions.*Set max_length to 4"):
        stage_inputs(GPT, row)
    assert stage_inputs(LLAMA, row)["position_ids"].shape == [1, 5]  # rotary: computed for any row
