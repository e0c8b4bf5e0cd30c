"""The program that chooses tokens against ``RowSampler``, given the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest

from paddlesft.export.sampling import CHECKED, SamplingGraph, disagreements, write_sampling
from paddlesft.inference.sampling import SamplingOptions


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> SamplingGraph:
    directory = tmp_path_factory.mktemp("sampling")
    return SamplingGraph(directory / write_sampling(directory))


@pytest.mark.parametrize("v", [3, 50, 3000])
@pytest.mark.parametrize("rounded", [False, True], ids=["", "with ties"])
def test_it_chooses_what_row_sampler_chooses(graph: SamplingGraph, v: int, rounded: bool) -> None:
    random = np.random.default_rng(v)
    for seed in range(6):
        logits = random.normal(0, 3, v).astype(np.float32)
        logits = np.round(logits) if rounded else logits
        logits[random.integers(v)] = -np.inf  # a token that the caller keeps away
        drawn = [
            SamplingOptions(
                decode_strategy="sampling", seed=seed, temperature=float(random.choice([0, 0.3, 0.95, 2])),
                top_k=int(random.choice([0, 1, 5, 40])), top_p=float(random.choice([0, 0.3, 0.7, 0.95, 1])),
                repetition_penalty=float(random.choice([0.8, 1, 1.3])),
            )
            for _ in range(10)
        ]  # fmt: skip
        assert disagreements(graph, logits, random.integers(0, v, 5).tolist(), [*CHECKED, *drawn]) == []


def test_it_draws_with_the_probabilities_of_the_logits(graph: SamplingGraph) -> None:
    """Not against our own sampler: 20,000 draws from three tokens with probabilities 0.5, 0.3 and 0.2."""
    b, probabilities = 20000, np.array([0.5, 0.3, 0.2])
    tokens = graph(
        logits=np.tile(np.log(probabilities), [b, 1]), temperature=np.ones(b), top_k=np.zeros(b), top_p=np.ones(b),
        repetition_penalty=np.ones(b), seen=np.zeros([b, 3]),
        noise=np.random.default_rng(0).standard_exponential([b, 3]),
    )  # fmt: skip
    assert tokens.dtype == np.int64
    np.testing.assert_allclose(np.bincount(tokens, minlength=3) / b, probabilities, atol=0.01)


def test_a_wrong_choice_is_said(graph: SamplingGraph) -> None:
    class Wrong:
        def __call__(self, **arrays: np.ndarray) -> np.ndarray:
            return graph(**arrays) + 1

    logits = np.random.default_rng(0).normal(0, 3, 50).astype(np.float32)
    said = disagreements(Wrong(), logits, [1, 2], CHECKED[:1])
    best = int(logits.argmax())
    assert said == [
        f"sampling with temperature 0, top_k 0, top_p 1.0, repetition_penalty 1.0: token {best + 1}, not {best}"
    ]
