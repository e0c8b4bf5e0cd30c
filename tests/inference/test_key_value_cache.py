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
    """Two layers, two heads of four numbers; bfloat16 is a tensor on the device."""
    return KeyValueCache(CacheShape(2, 2, 4, request.param), request.param != "float32")


PREFIX = 300 + numbers(4, 2, 3, 4) // 64 * 2  # three columns


def test_rows_of_different_length_stand_behind_their_prefixes(cache: KeyValueCache) -> None:
    cache.open(3)
    prompts, step = numbers(4, 3, 2, 5, 4), numbers(4, 3, 2, 1, 4) + 1
    cache.reserve(3, 3 + 5)
    cache.fill(1, 0, PREFIX[:, :, :1])
    cache.fill(1, 1, PREFIX[:, :, 1:])
    before = cache.tensors()
    cache.write([0, 3, 0], [5, 1, 3], prompts if not cache._on_device else paddle.to_tensor(prompts).astype("bfloat16"))
    cache.reserve(3, 3 + 6)
    assert cache.tensors() is before and cache.columns == COLUMNS  # nothing grew
    cache.write([5, 4, 3], [1, 1, 1], step)
    found = content(cache)
    assert np.array_equal(found[:, 1, :, :3], PREFIX)
    for row, (first, count) in enumerate(((0, 5), (3, 1), (0, 3))):
        end = first + count
        assert np.array_equal(found[:, row, :, first:end], prompts[:, row, :, :count])
        assert np.array_equal(found[:, row, :, end], step[:, row, :, 0])
        assert not found[:, row, :, end + 1 :].any()
    kept = cache.read(1, 1, 4)
    assert np.array_equal(kept if isinstance(kept, np.ndarray) else kept.astype("float32"), found[:, 1, :, 1:4])


def test_rows_leave_in_any_order_and_others_come(cache: KeyValueCache) -> None:
    cache.open(4)
    tokens = numbers(4, 4, 2, 2, 4)
    cache.reserve(4, 5)
    cache.write([3] * 4, [2] * 4, tokens)
    cache.keep([0, 3, 1])
    assert np.array_equal(content(cache)[:, :, :, 3:5], tokens[:, [0, 3, 1]])
    cache.keep([1])
    assert np.array_equal(content(cache)[:, :, :, 3:5], tokens[:, [3]])
    cache.reserve(2, COLUMNS + 1)  # a row joins, and the block grows
    found = content(cache)
    assert found.shape == (4, 2, 2, 2 * COLUMNS, 4) and cache.block.shape[1] == cache.rows == 2
    assert np.array_equal(found[:, 0, :, 3:5], tokens[:, 3])
    assert not found[:, 1].any()  # nothing of the row that stood there


def test_caches_join_and_give_memory_back(cache: KeyValueCache) -> None:
    def filled(rows: int, columns: int, value: float) -> KeyValueCache:
        one = KeyValueCache(cache._shape, cache._on_device)
        one.open(rows)
        one.reserve(rows, columns)
        one.write([0] * rows, [columns] * rows, np.full([4, rows, 2, columns, 4], value, np.float32))
        return one

    cache.join(filled(2, 5, 1), 5)  # into an empty one
    cache.join(filled(1, 2 * COLUMNS, 2), 2 * COLUMNS)  # a longer row
    cache.join(filled(1, 7, 3), 2 * COLUMNS)
    assert (cache.rows, cache.columns) == (4, 2 * COLUMNS)
    expected = np.zeros([4, 4, 2, 2 * COLUMNS, 4])
    expected[:, :2, :, :5], expected[:, 2], expected[:, 3, :, :7] = 1, 2, 3
    assert np.array_equal(content(cache), expected)
    cache.keep([3, 0])
    cache.shrink(COLUMNS + 1)
    assert cache.columns == 2 * COLUMNS  # more than half is needed
    cache.shrink(8)
    assert cache.columns == COLUMNS
    assert np.array_equal(content(cache), expected[:, [3, 0], :, :COLUMNS])
    cache.keep([])
    cache.shrink(1)
    assert cache.columns == cache.rows == 0
    cache.join(filled(1, 3, 4), 3)
    assert np.array_equal(content(cache)[:, 0, :, :3], np.full([4, 2, 3, 4], 4))


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
