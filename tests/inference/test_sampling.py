"""Choosing tokens: options, greedy, the penalties, the drawing, and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest

from paddlesft.errors import PaddleSFTError, UserError
from paddlesft.inference.sampling import RowSampler, Sampler, SamplingOptions

SAMPLING = SamplingOptions(decode_strategy="sampling", seed=1)


def frequencies(options: SamplingOptions, logits: np.ndarray, draws: int = 4000) -> np.ndarray:
    row = RowSampler(options)
    return np.bincount([row.choose(logits) for _ in range(draws)], minlength=logits.size) / draws


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        SamplingOptions(
            max_new_tokens=0, decode_strategy="beam", temperature=-1, top_k=1.5, top_p=2, repetition_penalty=0,
            seed=-1, stop=("", "x"), stop_token_ids=(-2,), presence_penalty=2.5, frequency_penalty=float("nan"),
            logit_bias={3: 101, -1: 0, 4: True},
        )  # fmt: skip
    text = str(caught.value)
    assert "max_new_tokens is 0; allowed: a whole number from 1." in text
    assert "decode_strategy is 'beam'; allowed: greedy_search, sampling." in text
    assert "temperature is -1; allowed: a number from 0" in text
    assert "top_k is 1.5; allowed: a whole number from 0" in text
    assert "top_p is 2; allowed: a number from 0 to 1" in text
    assert "repetition_penalty is 0; allowed: a number above 0" in text
    assert "seed is -1; allowed: null or a whole number from 0." in text
    assert "stop is ['', 'x']; allowed: a list of texts that are not empty." in text
    assert "stop_token_ids is [-2]; allowed: a list of whole numbers from 0." in text
    assert "presence_penalty is 2.5; allowed: a number from -2 to 2 (0 is off)." in text
    assert "frequency_penalty is nan; allowed: a number from -2 to 2 (0 is off)." in text
    assert "logit_bias of token 3 is 101; allowed: a number from -100 to 100." in text
    assert "logit_bias names the token -1; allowed: token ids, whole numbers from 0." in text
    assert "logit_bias of token 4 is True; allowed: a number from -100 to 100." in text


def test_min_new_tokens_above_max_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match="min_new_tokens is 9, more than max_new_tokens, which is 8"):
        SamplingOptions(max_new_tokens=8, min_new_tokens=9)


def test_one_stop_text_may_be_given_as_a_string() -> None:
    assert SamplingOptions(stop="END").stop == ("END",)
    assert SamplingOptions(stop=None).stop == ()


@pytest.mark.parametrize("change", [{"temperature": 0}, {"top_k": 1}, {"top_p": 0}])
def test_options_that_leave_one_candidate_are_greedy(change: dict) -> None:
    assert SAMPLING.do_sample
    assert not SAMPLING.replace(**change).do_sample


def test_greedy_takes_the_lowest_id_of_equal_logits() -> None:
    logits = np.array([[0.0, 3.0, 3.0], [5.0, 1.0, 5.0]], dtype=np.float32)
    sampler = Sampler([RowSampler(SamplingOptions()), RowSampler(SamplingOptions())])
    assert sampler(logits).tolist() == [1, 0]
    assert [RowSampler(SamplingOptions()).choose(row) for row in logits] == [1, 0]


def test_drawing_follows_the_softmax_at_the_temperature() -> None:
    logits = np.array([1.0, 0.0, 2.0, -1.0])
    measured = frequencies(SAMPLING.replace(temperature=0.5), logits)
    assert np.abs(measured - softmax(logits / 0.5)).max() < 0.03


def test_top_k_draws_from_the_k_most_likely_and_breaks_ties_by_id() -> None:
    logits = np.array([1.0, 2.0, 1.0, 1.0])
    measured = frequencies(SAMPLING.replace(top_k=2), logits)
    assert measured[2] == measured[3] == 0
    assert np.abs(measured[:2] - softmax(logits[:2])).max() < 0.03


def test_top_p_draws_from_the_smallest_set_that_reaches_p() -> None:
    probabilities = np.array([0.1, 0.5, 0.3, 0.1])
    measured = frequencies(SAMPLING.replace(top_p=0.7), np.log(probabilities))
    assert measured[0] == measured[3] == 0
    assert np.abs(measured[1:3] - np.array([0.625, 0.375])).max() < 0.03
    alone = frequencies(SAMPLING.replace(top_p=0.4), np.log(probabilities), draws=50)
    assert alone[1] == 1.0


def test_top_p_counts_after_top_k() -> None:
    probabilities = np.array([0.4, 0.3, 0.2, 0.1])
    # Of the two kept tokens the first has 0.4 / 0.7 = 0.571 of the mass: enough for 0.55 after top_k, not before.
    assert frequencies(SAMPLING.replace(top_k=2, top_p=0.55), np.log(probabilities), draws=50)[0] == 1.0


def test_top_p_over_a_large_vocabulary_equals_the_full_sort() -> None:
    from paddlesft.inference.sampling import _nucleus

    random = np.random.default_rng(0)
    for spread, top_p in ((8.0, 0.9), (0.01, 0.9), (2.0, 0.5)):
        probabilities = softmax(random.normal(size=5000) * spread)
        order = np.argsort(-probabilities, kind="stable")
        count = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
        assert _nucleus(probabilities, top_p).tolist() == sorted(order[:count].tolist())


def test_repetition_penalty_counts_prompt_and_reply() -> None:
    row = RowSampler(SamplingOptions(repetition_penalty=2.0), prompt=[0])
    logits = np.array([3.0, 2.0, 1.2, -1.0])
    assert row.choose(logits) == 1  # 0 is in the prompt: 3.0 -> 1.5
    assert row.choose(logits) == 0  # now 1 counts too: 2.0 -> 1.0, and 1.5 is the largest
    negative = RowSampler(SamplingOptions(repetition_penalty=2.0), prompt=[0])
    assert negative.choose(np.array([-1.0, -1.5])) == 1  # -1.0 -> -2.0


@pytest.mark.parametrize(("presence", "frequency"), [(0.7, 0.0), (0.0, 0.3), (-1.5, 0.9), (2.0, -2.0)])
def test_reply_penalties_and_biases_are_openais_formula(presence: float, frequency: float) -> None:
    random = np.random.default_rng(11)
    bias = {2: 1.5, 7: -100.0}
    row = RowSampler(
        SamplingOptions(presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias), prompt=[0, 1, 1, 2]
    )
    assert not row.is_plain_argmax
    reply: list[int] = []
    for _ in range(60):
        logits = random.normal(size=12).astype(np.float32)
        kept = logits.copy()
        wanted = [
            float(logit) + bias.get(token, 0.0) - reply.count(token) * frequency - (token in reply) * presence
            for token, logit in enumerate(logits)
        ]
        reply.append(row.choose(logits))
        assert reply[-1] == wanted.index(max(wanted))
        assert np.array_equal(logits, kept)
    assert 7 not in reply  # a bias of -100 forbids a token


def test_a_bias_changes_the_probability_of_a_drawn_token() -> None:
    logits = np.array([1.0, 0.0, 2.0, -1.0])
    measured = frequencies(SAMPLING.replace(logit_bias={1: 2.0}, temperature=1.5), logits)
    assert np.abs(measured - softmax((logits + np.array([0, 2.0, 0, 0])) / 1.5)).max() < 0.03


def test_a_bias_of_a_token_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="logit_bias names the token 9; the model has the tokens 0 to 3"):
        RowSampler(SamplingOptions(logit_bias={9: 1})).choose(np.zeros(4))
    # a stop token that the model lacks cannot be chosen anyway
    assert RowSampler(SamplingOptions(min_new_tokens=1), stop_token_ids=[0, 9]).choose(np.zeros(4)) == 1


def test_stop_tokens_are_not_chosen_before_min_new_tokens() -> None:
    row = RowSampler(SamplingOptions(min_new_tokens=2), stop_token_ids=[1])
    logits = np.array([1.0, 9.0])
    assert [row.choose(logits) for _ in range(3)] == [0, 0, 1]


def test_the_same_seed_gives_the_same_tokens_whatever_the_batch() -> None:
    random = np.random.default_rng(5)
    steps = random.normal(size=[6, 4, 300]).astype(np.float32) * 3
    options = SAMPLING.replace(top_p=0.9, top_k=200, temperature=0.8)
    batch = Sampler([RowSampler(options, row=i) for i in range(4)])
    together = np.stack([batch(logits) for logits in steps])
    # Rounding noise of the size that another batch shape causes must not change a token.
    noise = random.normal(size=steps.shape).astype(np.float32) * 1e-5
    for i in range(4):
        alone = Sampler([RowSampler(options, row=i)])
        assert [int(alone(logits[i : i + 1])[0]) for logits in steps + noise] == together[:, i].tolist()
    assert len({tuple(together[:, i]) for i in range(4)}) == 4
    other = Sampler([RowSampler(options.replace(seed=2), row=i) for i in range(4)])
    assert not np.array_equal(np.stack([other(logits) for logits in steps]), together)


def test_rows_of_equal_logits_draw_differently() -> None:
    logits = np.zeros([8, 1000], dtype=np.float32)
    tokens = Sampler([RowSampler(SAMPLING, row=i) for i in range(8)])(logits)
    assert len(set(tokens.tolist())) > 1


def test_dropping_rows_keeps_their_random_numbers() -> None:
    logits = np.random.default_rng(3).normal(size=[3, 50]).astype(np.float32)
    whole = Sampler([RowSampler(SAMPLING, row=i) for i in range(3)])
    cut = Sampler([RowSampler(SAMPLING, row=i) for i in range(3)])
    whole(logits), cut(logits)
    cut.keep([0, 2])
    assert cut(logits[[0, 2]]).tolist() == whole(logits)[[0, 2]].tolist()


@pytest.mark.parametrize("options", [SamplingOptions(), SAMPLING])
def test_broken_logits_are_an_error_and_not_a_token(options: SamplingOptions) -> None:
    logits = np.array([[0.0, 1.0], [np.nan, 1.0]], dtype=np.float32)
    with pytest.raises(PaddleSFTError, match="largest logit is nan, so no token can be chosen"):
        Sampler([RowSampler(options), RowSampler(options)])(logits)


def test_tensors_of_any_float_type_are_taken() -> None:
    import paddle

    logits = paddle.to_tensor([[0.0, 4.0, 1.0]]).astype("bfloat16")
    assert Sampler([RowSampler(SamplingOptions())])(logits).tolist() == [1]
