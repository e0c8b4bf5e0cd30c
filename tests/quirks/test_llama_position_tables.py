"""Rows longer than Llama's table of positions: upstream stops, the mended model computes what a larger one computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddlenlp.transformers import LlamaForCausalLM

from paddlesft.quirks.llama_position_tables import extend_when_needed
from tests.training.small_runs import small_model

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "llama3": {"rope_scaling": LLAMA3},
    "linear": {"rope_scaling_type": "linear", "rope_scaling_factor": 2},
}
ROW = paddle.to_tensor([[5 + i % 80 for i in range(100)]])


def logits(model: LlamaForCausalLM, ids: paddle.Tensor) -> np.ndarray:
    model.eval()
    with paddle.no_grad():
        return model(ids)[0][0].numpy()


def test_paddlenlp_still_gives_a_table_that_is_too_short() -> None:
    """When this fails, paddlenlp has moved on: remove the quirk."""
    table = small_model(max_position_embeddings=32).llama.layers[0].self_attn.rotary_emb
    assert table(paddle.ones([1, 40, 2, 8]), seq_len=40)[0].shape[1] == 32


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_row_has_the_logits_of_a_larger_model(kind: str) -> None:
    model = small_model(max_position_embeddings=32, **KINDS[kind])
    larger = small_model(max_position_embeddings=256, **KINDS[kind])
    extend_when_needed(model)
    for length in (20, 100, 20):  # before, beyond and back
        np.testing.assert_allclose(logits(model, ROW[:, :length]), logits(larger, ROW[:, :length]), atol=1e-5)
