import numpy as np
import paddle

from paddlesft.models.decoders.masks import block_diagonal_mask


def test_each_segment_sees_itself_backwards() -> None:
    mask = block_diagonal_mask(paddle.to_tensor([[1, 1, 2, 2, 0]])).numpy()
    assert mask.shape == (1, 1, 5, 5)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(mask[0, 0].astype(int), expected)


def test_every_position_sees_the_tuned_prefix() -> None:
    mask = block_diagonal_mask(paddle.to_tensor([[1, 2]]), num_prefix_tokens=3).numpy()[0, 0]
    np.testing.assert_array_equal(mask.astype(int), [[1, 1, 1, 1, 0], [1, 1, 1, 0, 1]])
