import numpy as np
import paddle

from paddlesft.models.decoders.causal_masks import additive, causal_mask


def test_a_query_sees_the_real_keys_up_to_itself() -> None:
    mask = causal_mask(paddle.to_tensor([[0, 1, 1], [1, 1, 0]]), 3).astype("int64").numpy()
    np.testing.assert_array_equal(mask[0, 0], [[0, 0, 0], [0, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(mask[1, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 0]])


def test_queries_are_the_last_positions_of_the_keys() -> None:
    mask = causal_mask(paddle.to_tensor([[0, 1, 1, 1]]), 2).astype("int64").numpy()
    np.testing.assert_array_equal(mask[0, 0], [[0, 1, 1, 0], [0, 1, 1, 1]])


def test_a_row_that_sees_nothing_stays_finite() -> None:
    scores = additive(paddle.to_tensor([[False, False], [True, False]]), -1e4)
    weights = paddle.nn.functional.softmax(scores, axis=-1).numpy()
    np.testing.assert_allclose(weights, [[0.5, 0.5], [1.0, 0.0]], atol=1e-20)
