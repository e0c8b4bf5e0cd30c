"""GPT's pipeline class still ends with its causal table; with the fix it takes wider masks as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.quirks.gpt_pipeline_table import leave_mask_as_it_is

KNOWN, WIDTH = 4, 6


def embedding() -> Any:
    from paddlenlp.transformers import GPTConfig
    from paddlenlp.transformers.gpt.modeling_pp import GPTEmbeddingPipe

    layer = GPTEmbeddingPipe(GPTConfig(vocab_size=8, hidden_size=4, max_position_embeddings=KNOWN))
    layer.eval()
    return layer


def packed() -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Two conversations of three tokens in a row."""
    block = np.tril(np.ones([3, 3], dtype=bool))
    mask = np.kron(np.eye(2, dtype=bool), block)[None, None]
    return paddle.ones([1, WIDTH], dtype="int64"), paddle.to_tensor(mask), paddle.to_tensor([[0, 1, 2] * 2])


def test_upstream_still_ends_with_its_table() -> None:
    """When this fails, paddlenlp takes any width: retire the quirk."""
    with pytest.raises(ValueError, match="Broadcast dimension mismatch"):
        embedding()(packed())


def test_wide_masks_are_taken_as_they_are() -> None:
    layer, inputs = embedding(), packed()
    leave_mask_as_it_is(paddle.nn.Sequential(layer))
    _, mask, _ = layer(inputs)
    np.testing.assert_array_equal(mask.numpy() == 0, inputs[1].numpy())
