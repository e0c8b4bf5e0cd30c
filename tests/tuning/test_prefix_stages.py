"""What a layer of a pipeline sees of its prefix, and where tokens stand whose positions only their mask tells."""

from __future__ import annotations

import paddle
import pytest
from paddle import nn

from paddlesft.tuning.prefix_stages import attention_of, positions, with_prefix

# two conversations packed into one row, of three tokens and of two; then a row of three tokens behind padding
SEEN = paddle.to_tensor(
    [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]],
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]],
    ]
).unsqueeze(1)
BOOL = SEEN.astype("bool")
ADDED = (1.0 - SEEN.astype("float32")) * -1e9  # as added to attention scores


@pytest.mark.parametrize("mask", [BOOL, ADDED], ids=["bool", "added"])
def test_every_token_sees_the_prefix_and_what_it_saw(mask: paddle.Tensor) -> None:
    longer = with_prefix(mask, 3)
    assert longer.shape == [2, 1, 5, 8] and longer.dtype == mask.dtype
    visible = longer if longer.dtype == paddle.bool else longer == 0
    assert bool(visible[..., :3].all())
    assert bool((longer[..., 3:] == mask).all())


@pytest.mark.parametrize("mask", [BOOL, ADDED], ids=["bool", "added"])
def test_positions_count_the_tokens_of_a_conversation(mask: paddle.Tensor) -> None:
    found = positions(mask)
    assert found.dtype == paddle.int64
    assert found.tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 1, 2]]


def test_the_layer_that_takes_a_cache_is_found_by_its_argument() -> None:
    class Attention(nn.Layer):
        def forward(self, hidden: paddle.Tensor, layer_past: object = None) -> paddle.Tensor:
            return hidden

    class Block(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(2), Attention()

    block = Block()
    assert attention_of(block) == (block.attention, "layer_past")
