"""The cache's block: where new tokens stand, and what growing and dropping rows leaves of them."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlesft.inference.key_value_cache import COLUMNS, KeyValueCache
from paddlesft.models.steps import CacheShape


def numbers(*shape: int) -> np.ndarray:
    """Different numbers that bfloat16 holds exactly."""
    return (np.arange(np.prod(shape)) % 251 + 1).reshape(shape).astype(np.float32)


def content(cache: KeyValueCache) -> np.ndarray:
    """What the model is given, [2 L, b, n, m, d]."""
    return np.stack([tensor.astype("float32").numpy() for tensor in cache.tensors()])


@pytest.fixture(params=["float32", "bfloat16"])
def cache(request: pytest.FixtureRequest) -> KeyValueCache:
    """Two layers, two heads of four numbers, a prefix of three columns; bfloat16 is a tensor on the device."""
    return KeyValueCache(
        CacheShape(2, 2, 4, request.param), 300 + numbers(4, 2, 3, 4) // 64 * 2, request.param != "float32"
    )


def test_rows_of_different_length_stand_behind_the_prefix(cache: KeyValueCache) -> None:
    cache.open(3)
    assert cache.columns == 3 and np.array_equal(content(cache)[:, 1], 300 + numbers(4, 2, 3, 4) // 64 * 2)
    prompts, step = numbers(4, 3, 2, 5, 4), numbers(4, 3, 2, 1, 4) + 1
    cache.reserve(3, 3 + 5)
    before = cache.tensors()
    cache.write([0, 0, 0], [5, 1, 3], prompts if not cache._on_device else paddle.to_tensor(prompts).astype("bfloat16"))
    cache.reserve(3, 3 + 6)
    assert cache.tensors() is before and cache.columns == COLUMNS  # nothing grew
    cache.write([5, 1, 3], [1, 1, 1], step)
    found = content(cache)
    for row, count in enumerate((5, 1, 3)):
        assert np.array_equal(found[:, row, :, 3 : 3 + count], prompts[:, row, :, :count])
        assert np.array_equal(found[:, row, :, 3 + count], step[:, row, :, 0])
        assert not found[:, row, :, 4 + count :].any()


def test_rows_leave_in_any_order_and_others_come(cache: KeyValueCache) -> None:
    cache.open(4)
    tokens = numbers(4, 4, 2, 2, 4)
    cache.reserve(4, 5)
    cache.write([0] * 4, [2] * 4, tokens)
    cache.keep([0, 3, 1])
    assert np.array_equal(content(cache)[:, :, :, 3:5], tokens[:, [0, 3, 1]])
    cache.keep([1])
    assert np.array_equal(content(cache)[:, :, :, 3:5], tokens[:, [3]])
    cache.reserve(2, COLUMNS + 1)  # a row joins, and the block grows
    found = content(cache)
    assert found.shape == (4, 2, 2, 2 * COLUMNS, 4) and cache.block.shape[1] == 2
    assert np.array_equal(found[:, 0, :, 3:5], tokens[:, 3])
    assert np.array_equal(found[:, 1, :, :3], 300 + numbers(4, 2, 3, 4) // 64 * 2)


def test_growth_is_by_a_quarter_and_in_whole_steps() -> None:
    cache = KeyValueCache(CacheShape(1, 1, 1, "float32"))
    cache.open(1)
    assert cache.columns == 1  # a graph cannot do without a column
    grown = []
    for columns in range(1, 1000):
        cache.reserve(1, columns)
        grown += [cache.columns] if cache.columns not in grown else []
    assert grown == [1, 64, 128, 192, 256, 320, 448, 576, 768, 960, 1216]


def test_tensors_lie_in_the_block_of_main_memory() -> None:
    cache = KeyValueCache(CacheShape(1, 1, 2, "float32"))
    cache.open(2)
    cache.reserve(2, 2)
    cache.keep([1])
    tensors = cache.tensors()
    cache.write([0], [1], np.full([2, 1, 1, 1, 2], 7, np.float32))
    assert [tensor[0, 0, 0].tolist() for tensor in tensors] == [[7, 7], [7, 7]]
    assert cache.block[0].flags.c_contiguous and cache.block[1].flags.c_contiguous
