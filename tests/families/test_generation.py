"""A row's reply does not depend on the batch: padding on the left, other rows ending, other rows' random numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from paddlesft.inference.eager import EagerRunner
from paddlesft.inference.generation import evaluating
from paddlesft.inference.sampling import SamplingOptions
from tests.families.tuning_runs import TuningRun, cases

GREEDY = SamplingOptions(max_new_tokens=48)
SAMPLED = SamplingOptions(max_new_tokens=12, decode_strategy="sampling", temperature=3.0, top_k=50, top_p=0.95, seed=11)


@pytest.mark.parametrize(("family", "method"), cases())
def test_a_padded_batch_gives_the_replies_of_single_rows(
    family: str, method: str, tuning_run: Callable[[str, str], TuningRun]
) -> None:
    tuned = tuning_run(family, method)
    assert len({len(prompt) for prompt in tuned.prompts()}) > 1  # there is something to pad
    together = tuned.generate(GREEDY)
    assert [reply.text for reply in together] == list(tuned.rows.values())
    apart = [reply for i in range(len(tuned.rows)) for reply in tuned.generate(GREEDY, [i])]
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in apart]


@pytest.mark.parametrize(("family", "method"), cases())
def test_the_logits_of_a_padded_batch_are_those_of_single_rows(
    family: str, method: str, tuning_run: Callable[[str, str], TuningRun]
) -> None:
    tuned = tuning_run(family, method)
    prompts = sorted(tuned.prompts()[:4], key=len)
    follow = np.random.default_rng(0).integers(5, tuned.loaded.model.config.vocab_size - 5, [4, len(prompts)])
    kept = [0, 2]  # after two steps the others leave, the longest among them, and the padding that is left with them

    def logits(rows: list[int]) -> list[np.ndarray]:
        runner = EagerRunner(tuned.loaded.model, tuned.loaded.pad_token_id)
        found = [runner.prefill([prompts[row] for row in rows]).numpy()]
        found += [runner.step(follow[step, rows]).numpy() for step in (0, 1)]
        if len(rows) > 1:
            runner.keep(kept)
            rows = [rows[i] for i in kept]
        return found + [runner.step(follow[step, rows]).numpy() for step in (2, 3)]

    with evaluating(tuned.loaded.model):
        together = logits(list(range(len(prompts))))
        for row in range(len(prompts)):
            for step, alone in enumerate(logits([row])):
                if step > 2 and row not in kept:
                    continue
                place = row if step <= 2 else kept.index(row)
                np.testing.assert_allclose(together[step][place], alone[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("family", "method"), cases())
def test_drawn_replies_repeat_and_do_not_depend_on_the_batch(
    family: str, method: str, tuning_run: Callable[[str, str], TuningRun]
) -> None:
    tuned = tuning_run(family, method)
    together = [reply.token_ids for reply in tuned.generate(SAMPLED, range(4))]
    assert together == [reply.token_ids for reply in tuned.generate(SAMPLED, range(4))]
    pairs = [reply.token_ids for rows in ([3, 0], [2, 1]) for reply in tuned.generate(SAMPLED, rows)]
    assert together == [pairs[1], pairs[3], pairs[2], pairs[0]]
    assert together != [reply.token_ids for reply in tuned.generate(SAMPLED.replace(seed=12), range(4))]
