"""Every collective of the CPU backend against numpy, with two ranks, four ranks and two pairs of ranks at a time.

The two ranks divide nothing but rows: Paddle's own group computes their large sums.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlesft.parallel.gloo import tensor_parallel_ops
from tests.parallel.programs.collectives import HUGE, LARGE, SHAPE, numbers
from tests.parallel.ranks import launch_well

GROUPS = {"two": [(0, 1)], "four": [(0, 1, 2, 3)], "pairs": [(0, 2), (1, 3)]}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """(name of GROUPS, rank among all) -> what that rank got, by name of the operation."""
    found = {}
    for number in (2, 4):
        directory = tmp_path_factory.mktemp(f"ranks{number}")
        launch_well(number, "collectives.py", directory, logs=directory / "logs", seconds=120)
        for file in directory.glob("*.npz"):
            kind, rank = file.stem.split("-")
            name = "pairs" if kind == "pair" else {2: "two", 4: "four"}[number]
            found[name, int(rank)] = dict(np.load(file))
    return found


def rows(array: np.ndarray, n: int, rank: int) -> np.ndarray:
    return np.split(array, n)[rank]


def expected(n: int, rank: int) -> dict[str, np.ndarray]:
    """What numpy says that member ``rank`` of ``n`` gets."""
    own = np.stack([numbers(i) for i in range(n)])
    salted = lambda salt, shape=SHAPE: np.stack([numbers(i, salt, shape) for i in range(n)])  # noqa: E731
    previous = (rank - 1) % n
    several = np.stack([salted(10 + i) for i in range(n)], axis=1)  # [member, for whom, ...]
    sliced = numbers(rank, 2)
    sliced[1:3] = salted(2).sum(0)[1:3]
    sizes = np.cumsum([i + 1 for i in range(n)])
    uneven = [np.split(array, sizes[:-1])[rank] for array in salted(3, (int(sizes[-1]), 2))]
    partial = np.zeros(SHAPE, "float32").reshape(-1)
    partial[6:12] = numbers(previous).reshape(-1)[6:12]  # part 1 of 4
    integers = np.arange(6) * n + sum(range(n))
    wanted = {
        "all_reduce SUM": own.sum(0),
        "all_reduce MAX": own.max(0),
        "all_reduce MIN": own.min(0),
        "all_reduce PROD": own.prod(0),
        "all_reduce AVG": own.mean(0),
        **{f"all_reduce {dtype}": integers for dtype in ("float16", "bfloat16", "float64", "int64")},
        "all_reduce large": salted(1, LARGE).sum(0),
        "all_reduce huge": salted(4, HUGE).sum(0)[:, ::1000],
        "all_reduce scalar": np.float32(n * (n + 1) / 2),
        "all_reduce slice": sliced,
        "reduce": own.sum(0) if rank == 1 else own[rank],
        "broadcast": own[1],
        "all_gather": own,
        "all_gather_into_tensor": own.reshape(-1, SHAPE[1]),
        "all_gather_object": np.arange(n) * 11,
        "gather": own if rank == 0 else np.zeros(0),
        "reduce_scatter_tensor": rows(own.sum(0), n, rank),
        "reduce_scatter": several[:, rank].sum(0),
        "scatter": several[0, rank],
        "all_to_all": several[:, rank],
        "all_to_all_single": np.concatenate([rows(array, n, rank) for array in own]),
        "all_to_all uneven": np.concatenate(uneven),
        "send and receive": np.stack([numbers(previous, 20, LARGE), numbers(previous, 21, LARGE)]),
        "batch": own[previous],
        "partial receive": partial.reshape(SHAPE),
        "all_gather_partial": np.concatenate([np.split(own[i].reshape(-1), n)[i] for i in range(n)]).reshape(SHAPE),
    }
    return wanted | expected_of_tensor_parallel(n, rank)


def expected_of_tensor_parallel(n: int, rank: int) -> dict[str, np.ndarray]:
    shared, wide = numbers(0, 32), numbers(0, 35, (3, 8))
    weights = np.stack([numbers(i, 30) for i in range(n)])
    upstream = lambda shape, i=rank: numbers(i, 31, shape)  # noqa: E731
    joined = np.concatenate([numbers(i, 34) for i in range(n)], axis=-1)
    split_gradients = [upstream((3, 8 // n), i) for i in range(n)]
    logits = (
        np.concatenate([numbers(i, 36, (2, 3, 5)) * 30 for i in range(n)], axis=-1).reshape(6, -1).astype("float64")
    )
    labels, scale = np.asarray([0, 5, -100, 9, 4, 7]), np.arange(1.0, 7.0)
    counted = labels >= 0
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    hot = np.eye(logits.shape[-1])[np.where(counted, labels, 0)]
    loss = np.where(counted, -np.log((softmax * hot).sum(-1)), 0)
    gradient = (softmax - hot) * (scale * counted)[:, None]
    return {
        "identity": shared,
        "identity gradient": np.stack([upstream(SHAPE, i) for i in range(n)]).sum(0),
        "sum": (np.stack([numbers(i, 33) for i in range(n)]) * weights).sum(0),
        "sum gradient": upstream(SHAPE) * weights[rank],
        "concatenation": joined,
        "concatenation gradient": np.split(upstream(joined.shape), n, axis=-1)[rank],
        "split": np.split(wide, n, axis=-1)[rank],
        "split gradient": np.concatenate(split_gradients, axis=-1),
        "cross entropy": loss,
        "cross entropy gradient": np.split(gradient, n, axis=-1)[rank].reshape(2, 3, 5),
        "softmax": np.split(softmax, n, axis=-1)[rank].reshape(2, 3, 5),
    }


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("operation", sorted(expected(2, 0)))
def test_collective_gives_what_numpy_gives(results: dict, name: str, operation: str) -> None:
    for members in GROUPS[name]:
        for rank, world_rank in enumerate(members):
            got, wanted = results[name, world_rank][operation], expected(len(members), rank)[operation]
            assert got.shape == np.shape(wanted), f"{operation} on rank {world_rank} of {members}"
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5, err_msg=f"rank {world_rank} of {members}")


def test_all_members_hold_the_same_bits_after_a_sum(results: dict) -> None:
    for name in ("all_reduce SUM", "all_reduce large"):
        first, *others = [results["four", rank][name].tobytes() for rank in range(4)]
        assert all(other == first for other in others)


def test_every_operation_that_ran_is_checked(results: dict) -> None:
    for got in results.values():
        assert set(got) == set(expected(2, 0))


def test_the_loss_of_a_large_vocabulary_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel_ops, "_summed", lambda x, *_: x)  # one rank
    logits = 4 * np.random.default_rng(0).standard_normal((8, 60_000)).astype("float32")
    labels = logits.argmax(-1)
    _, loss = tensor_parallel_ops.VocabularyParallelCrossEntropy.apply(
        paddle.to_tensor(logits), paddle.to_tensor(labels), -100, 0, 0, 1
    )
    wide = logits.astype("float64")
    wanted = np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1))
    np.testing.assert_allclose(loss.numpy(), wanted, rtol=2e-6, atol=2e-6)
