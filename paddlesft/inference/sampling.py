"""How the next token is chosen, and the options that say so. Eager, exported and served generation share this file.

Shape legend: b batch, v vocabulary.

Everything here works row by row on numpy arrays: a row's choice depends on its own logits, its own history and its own
random numbers, never on the batch it happens to be in. The same seed gives the same text for any batch size.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paddlesft.errors import PaddleSFTError, UserError

STRATEGIES = ("greedy_search", "sampling")


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """What generation may do and when it ends.

    Attributes:
        max_new_tokens: most tokens of a reply, the stop token included.
        min_new_tokens: stop tokens and stop strings are ignored until the reply has this many tokens.
        decode_strategy: "greedy_search" takes the most likely token, "sampling" draws one.
        temperature: divides the logits before drawing; 0 is the same as "greedy_search".
        top_k: draw from the k most likely tokens; 0 draws from all.
        top_p: draw from the smallest set of most likely tokens whose probability reaches p (nucleus sampling,
            https://arxiv.org/abs/1904.09751), after ``top_k``; 1.0 draws from all.
        repetition_penalty: divides positive and multiplies negative logits of tokens that prompt or reply contain
            already (CTRL, https://arxiv.org/abs/1909.05858); 1.0 is off.
        presence_penalty: is subtracted from the logits of tokens that the reply contains already (OpenAI's API,
            https://platform.openai.com/docs/api-reference/chat); from -2 to 2, 0.0 is off.
        frequency_penalty: is subtracted once for each time that the reply contains the token; from -2 to 2, 0.0 is off.
        logit_bias: number that is added to a token's logit, by token id; from -100 to 100.
        seed: seed of the drawing; None draws differently on each run.
        stop: strings that end the reply; they are not part of the returned text.
        stop_token_ids: token ids that end the reply, in addition to those of the model.

    Raises:
        UserError: values out of range; all of them are named at once.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    decode_strategy: str = "greedy_search"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict, hash=False)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        problems = list(self._problems())
        if problems:
            raise UserError("Generation options are wrong:\n" + "\n".join(f"  - {text}" for text in problems[:20]))

    def _problems(self) -> Iterable[str]:
        def whole(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        def number(value: object) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and value == value

        if not whole(self.max_new_tokens) or self.max_new_tokens < 1:
            yield f"max_new_tokens is {self.max_new_tokens!r}; allowed: a whole number from 1."
        if not whole(self.min_new_tokens) or self.min_new_tokens < 0:
            yield f"min_new_tokens is {self.min_new_tokens!r}; allowed: a whole number from 0."
        elif whole(self.max_new_tokens) and self.min_new_tokens > self.max_new_tokens:
            yield f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens, which is {self.max_new_tokens}."
        if self.decode_strategy not in STRATEGIES:
            yield f"decode_strategy is {self.decode_strategy!r}; allowed: {', '.join(STRATEGIES)}."
        if not number(self.temperature) or not 0 <= self.temperature < float("inf"):
            yield f"temperature is {self.temperature!r}; allowed: a number from 0 (0 takes the most likely token)."
        if not whole(self.top_k) or self.top_k < 0:
            yield f"top_k is {self.top_k!r}; allowed: a whole number from 0 (0 draws from all tokens)."
        if not number(self.top_p) or not 0 <= self.top_p <= 1:
            yield f"top_p is {self.top_p!r}; allowed: a number from 0 to 1 (1 draws from all tokens)."
        if not number(self.repetition_penalty) or not 0 < self.repetition_penalty < float("inf"):
            yield f"repetition_penalty is {self.repetition_penalty!r}; allowed: a number above 0 (1 is off)."
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not number(value) or not -2 <= value <= 2:
                yield f"{name} is {value!r}; allowed: a number from -2 to 2 (0 is off)."
        for token, bias in self.logit_bias.items():
            if not whole(token) or token < 0:
                yield f"logit_bias names the token {token!r}; allowed: token ids, whole numbers from 0."
            elif not number(bias) or not -100 <= bias <= 100:
                yield f"logit_bias of token {token} is {bias!r}; allowed: a number from -100 to 100."
        if self.seed is not None and (not whole(self.seed) or self.seed < 0):
            yield f"seed is {self.seed!r}; allowed: null or a whole number from 0."
        if not all(isinstance(text, str) and text for text in self.stop):
            yield f"stop is {list(self.stop)!r}; allowed: a list of texts that are not empty."
        if not all(whole(token) and token >= 0 for token in self.stop_token_ids):
            yield f"stop_token_ids is {list(self.stop_token_ids)!r}; allowed: a list of whole numbers from 0."

    @property
    def do_sample(self) -> bool:
        """Whether tokens are drawn at random. False where the options leave a single candidate."""
        return self.decode_strategy == "sampling" and self.temperature > 0 and self.top_k != 1 and self.top_p > 0

    @classmethod
    def from_config(cls, config: object, **changes: object) -> SamplingOptions:
        """Read the options from a config that has keys of the same names.

        Args:
            config: e.g. ``PredictConfig`` or ``GenerationConfig``. ``max_new_tokens`` None means
                ``max_length - src_length`` where the config has these.
            changes: values that win over the config's.

        Raises:
            UserError: values out of range, or ``src_length`` leaves no room in ``max_length``.
        """
        names = [field.name for field in dataclasses.fields(cls) if hasattr(config, field.name)]
        values = {name: getattr(config, name) for name in names} | changes
        if values.get("max_new_tokens") is None:
            values.pop("max_new_tokens", None)
            if hasattr(config, "max_length") and hasattr(config, "src_length"):
                values["max_new_tokens"] = config.max_length - config.src_length
                if values["max_new_tokens"] < 1:
                    raise UserError(
                        f"max_length is {config.max_length} and src_length {config.src_length}: no token is left for "
                        "the reply. Set max_new_tokens, raise max_length or lower src_length."
                    )
        return cls(**values)

    def replace(self, **changes: object) -> SamplingOptions:
        """Return a copy with some values changed; it is validated again."""
        return dataclasses.replace(self, **changes)


class RowSampler:
    """Chooses the tokens of one reply.

    Args:
        options: how to choose.
        prompt: the token ids of the prompt (the repetition penalty counts them).
        stop_token_ids: ids that must not be chosen before ``options.min_new_tokens``.
        row: the number of this reply in its task, e.g. the row of the data file. Together with the seed it fixes the
            random numbers, so rows of one batch differ and one row is the same in any batch.
    """

    def __init__(
        self, options: SamplingOptions, prompt: Sequence[int] = (), stop_token_ids: Iterable[int] = (), row: int = 0
    ) -> None:
        self.options = options
        self.num_chosen = 0
        self._stop = np.array(sorted(stop_token_ids), dtype=np.int64)
        self._seen = set(map(int, prompt)) if options.repetition_penalty != 1.0 else None
        penalizes = options.presence_penalty != 0 or options.frequency_penalty != 0
        self._reply: Counter[int] | None = Counter() if penalizes else None
        self._biased = np.array(list(options.logit_bias), dtype=np.int64)
        self._bias = np.array(list(options.logit_bias.values()), dtype=np.float64)
        self._random = None
        if options.do_sample:
            self._random = np.random.default_rng(None if options.seed is None else [options.seed, row])

    @property
    def is_plain_argmax(self) -> bool:
        """Whether the next choice is the argmax of the unchanged logits."""
        holds_back_stop = self.num_chosen < self.options.min_new_tokens and self._stop.size
        changes = self._seen is not None or self._reply is not None or self._biased.size or holds_back_stop
        return self._random is None and not changes

    def choose(self, logits: np.ndarray) -> int:
        """Choose the next token.

        Args:
            logits: float array [v]; not modified.

        Returns:
            The token id. Among equal logits the greedy choice is the lowest id.

        Raises:
            UserError: ``logit_bias`` names a token that the model does not have.
            PaddleSFTError: the logits contain NaN or are all minus infinity.
        """
        scores = logits.astype(np.float64)
        if self._seen is not None:
            seen = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
            penalty = self.options.repetition_penalty
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        if self._biased.size:
            if self._biased.max() >= scores.size:
                raise UserError(
                    f"logit_bias names the token {self._biased.max()}; the model has the tokens 0 to {scores.size - 1}."
                )
            scores[self._biased] += self._bias
        if self._reply:
            there = np.fromiter(self._reply, dtype=np.int64, count=len(self._reply))
            times = np.fromiter(self._reply.values(), dtype=np.float64, count=len(self._reply))
            scores[there] -= self.options.presence_penalty + self.options.frequency_penalty * times
        if self.num_chosen < self.options.min_new_tokens:
            scores[self._stop[self._stop < scores.size]] = -np.inf
        top = scores.max()
        if not np.isfinite(top):
            raise PaddleSFTError(
                f"The model's largest logit is {top}, so no token can be chosen. The weights or the dtype are broken: "
                "check the loss of the training run, or load the model with dtype=float32."
            )
        token = int(scores.argmax()) if self._random is None else self._draw(scores)
        self.record(token)
        return token

    def record(self, token: int) -> None:
        """Count a token that was chosen elsewhere (the batched argmax)."""
        self.num_chosen += 1
        if self._seen is not None:
            self._seen.add(token)
        if self._reply is not None:
            self._reply[token] += 1

    def _draw(self, scores: np.ndarray) -> int:
        scores = scores / self.options.temperature
        # An exponential race (the Gumbel-max trick): every id of the vocabulary has its own random number, and the id
        # with the smallest arrival time wins with its probability. Rounding differences between batch sizes then
        # change a token only when the two fastest are as close as the rounding, or an id at the border wins; drawing
        # by cumulated probability would move with every id below.
        arrival = self._random.standard_exponential(scores.size)
        candidates, top = None, scores.max()  # None: all; gathering all of them takes as long as the rest
        if 0 < self.options.top_k < scores.size:
            candidates = np.sort(most_likely(scores, self.options.top_k))
            scores, arrival = scores[candidates], arrival[candidates]
        weights = np.exp(scores - top)
        if self.options.top_p < 1.0:
            kept = _nucleus(weights / weights.sum(), self.options.top_p)
            candidates = kept if candidates is None else candidates[kept]
            weights, arrival = weights[kept], arrival[kept]
        with np.errstate(divide="ignore"):
            fastest = int(np.argmin(arrival / weights))
        return fastest if candidates is None else int(candidates[fastest])


def most_likely(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the ``count`` largest scores, in no order; ties go to the lower index."""
    border = np.partition(scores, scores.size - count)[scores.size - count]
    above = np.flatnonzero(scores > border)
    return np.concatenate([above, np.flatnonzero(scores == border)[: count - above.size]])


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Return the ascending indices of the smallest most likely set whose probability reaches ``top_p``."""
    pool = np.arange(probabilities.size)
    for share in (1e-2, 1e-3, 1e-4, 1e-5):  # sorting the whole vocabulary is rarely needed
        likely = np.flatnonzero(probabilities > probabilities.max() * share)
        if probabilities[likely].sum() > top_p:
            pool = likely
            break
    order = pool[np.argsort(-probabilities[pool], kind="stable")]
    count = int(np.searchsorted(np.cumsum(probabilities[order]), top_p, side="left")) + 1
    return np.sort(order[:count])


def choose_each(rows: Sequence[RowSampler], logits: Any) -> list[int | PaddleSFTError]:
    """Choose the next token of each row of a batch.

    Args:
        rows: one sampler for each row of the logits, in their order.
        logits: tensor or array [b, v].

    Returns:
        For each row its token, or why none can be chosen: a row's error leaves the others alone.
    """
    plain = [row.is_plain_argmax for row in rows]
    likeliest = _argmax(logits).tolist() if any(plain) else [-1] * len(rows)
    array: np.ndarray | None = None
    found: list[int | PaddleSFTError] = []
    for index, row in enumerate(rows):
        if plain[index] and likeliest[index] >= 0:
            row.record(likeliest[index])
            found.append(likeliest[index])
            continue
        if array is None:  # a draw needs random numbers for the whole vocabulary: a GPU's logits cross as they are
            array = _as_array(logits)
        try:
            found.append(row.choose(array[index]))
        except PaddleSFTError as error:
            found.append(error)
    return found


class Sampler:
    """Chooses the next tokens of a batch.

    Args:
        rows: one sampler for each row of the logits, in their order.
    """

    def __init__(self, rows: Sequence[RowSampler]) -> None:
        self.rows = list(rows)

    def __call__(self, logits: object) -> np.ndarray:
        """Choose one token for each row.

        Args:
            logits: tensor or array [b, v].

        Returns:
            int64 array [b].

        Raises:
            PaddleSFTError: no token can be chosen for a row, see ``RowSampler.choose``.
        """
        found = choose_each(self.rows, logits)
        for one in found:
            if isinstance(one, PaddleSFTError):
                raise one
        return np.array(found, dtype=np.int64)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the rows at ``indices``, in that order."""
        self.rows = [self.rows[i] for i in indices]


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the natural logarithm of the softmax of one row of logits, float64 [v]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    return shifted - np.log(np.exp(shifted).sum())


def _argmax(logits: Any) -> np.ndarray:
    """Return the first largest id of each row, int64 [b]; -1 where the largest logit is no finite number.

    On a GPU the tokens alone leave the device.
    """
    if not isinstance(logits, np.ndarray) and not logits.place.is_cpu_place():
        usable = logits.max(axis=-1).isfinite().logical_and(logits.isnan().any(axis=-1).logical_not()).astype("int64")
        return ((logits.argmax(axis=-1) + 1) * usable - 1).numpy()
    array = _as_array(logits)
    found = array.argmax(axis=-1)  # that of NaN where there is one
    return np.where(np.isfinite(np.take_along_axis(array, found[:, None], axis=-1)[:, 0]), found, -1).astype(np.int64)


def _as_array(logits: object) -> np.ndarray:
    if isinstance(logits, np.ndarray):
        return logits
    return logits.astype("float32").numpy()
