"""The choice of the next token as a static graph of its own, beside the one that computes logits.

Programs without Python choose tokens with it as ``inference/sampling.py`` does (``RowSampler``), number for number; the
random numbers come from the caller. It is made of plain operations, because Paddle's ``top_p_sampling`` has no CPU
kernel. It holds no weights and fits every model.

Shape legend: b rows, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
import paddle.inference
from paddle.static import InputSpec

from paddlesft.export.static_graph import save_program
from paddlesft.inference.paddle_graph import settings_of
from paddlesft.inference.sampling import RowSampler, SamplingOptions

NAME = "sampling"
# name -> shape and type of the arguments of ``Sampling.forward``
INPUTS = {
    "logits": ([None, None], "float32"),
    "temperature": ([None], "float64"),
    "top_k": ([None], "int64"),
    "top_p": ([None], "float64"),
    "repetition_penalty": ([None], "float64"),
    "seen": ([None, None], "bool"),
    "noise": ([None, None], "float64"),
}


class Sampling(paddle.nn.Layer):
    """Chooses one token for each row."""

    def forward(
        self,
        logits: paddle.Tensor,
        temperature: paddle.Tensor,
        top_k: paddle.Tensor,
        top_p: paddle.Tensor,
        repetition_penalty: paddle.Tensor,
        seen: paddle.Tensor,
        noise: paddle.Tensor,
    ) -> paddle.Tensor:
        """Choose the next tokens.

        Args:
            logits: float32 [b, v]; minus infinity keeps a token away.
            temperature: float64 [b]; 0 takes the most likely token.
            top_k: int64 [b]; 0 for all tokens.
            top_p: float64 [b]; 1 for all tokens.
            repetition_penalty: float64 [b]; 1 for none.
            seen: bool [b, v]; the tokens that the penalty is for: those of prompt and reply.
            noise: float64 [b, v]; drawn from the exponential distribution of mean 1, anew in every step.

        Returns:
            int64 [b].
        """
        scores, penalty = logits.astype("float64"), repetition_penalty.unsqueeze(1)
        scores = paddle.where(seen, paddle.where(scores < 0, scores * penalty, scores / penalty), scores)
        most_likely = paddle.argmax(scores, axis=1)
        greedy = temperature == 0
        scores = scores / paddle.where(greedy, temperature + 1.0, temperature).unsqueeze(1)
        # stable: of equal scores the lower id comes first, here as there
        order = paddle.argsort(scores, axis=1, descending=True, stable=True)
        scores = paddle.take_along_axis(scores, order, axis=1)
        weights = paddle.exp(scores - scores[:, :1])
        rank, k, p = paddle.arange(paddle.shape(scores)[1]).unsqueeze(0), top_k.unsqueeze(1), top_p.unsqueeze(1)
        weights = paddle.where((k <= 0) | (rank < k), weights, weights * 0.0)
        reached = paddle.cumsum(weights / weights.sum(axis=1, keepdim=True), axis=1)
        before = paddle.concat([reached[:, :1] * 0.0 - 1.0, reached[:, :-1]], axis=1)
        weights = paddle.where((p >= 1) | (before < p), weights, weights * 0.0)
        # the race of RowSampler: the smallest arrival time wins, with the probability of its weight
        arrival = paddle.take_along_axis(noise, order, axis=1) / weights
        drawn = paddle.take_along_axis(order, paddle.argmin(arrival, axis=1, keepdim=True), axis=1)
        return paddle.where(greedy, most_likely, drawn.squeeze(1))


def write_sampling(directory: Path) -> str:
    """Write the program into an existing directory.

    Returns:
        Its file's name.
    """
    specs = [InputSpec(shape, dtype, name) for name, (shape, dtype) in INPUTS.items()]
    return save_program(Sampling(), specs, directory / NAME)


class SamplingGraph:
    """Runs the program.

    Args:
        program: its file.
    """

    def __init__(self, program: Path) -> None:
        self._predictor = paddle.inference.create_predictor(settings_of(program))

    def __call__(self, **arrays: np.ndarray) -> np.ndarray:
        """Choose the next tokens; arguments and result as for ``Sampling.forward``."""
        for name, (_, dtype) in INPUTS.items():
            array = np.ascontiguousarray(arrays[name], dtype=dtype)
            self._predictor.get_input_handle(name).copy_from_cpu(array)
        self._predictor.run()
        return self._predictor.get_output_handle(self._predictor.get_output_names()[0]).copy_to_cpu()


# Settings to compare on: alone and together, and such that leave one token.
CHECKED = tuple(
    SamplingOptions(decode_strategy="sampling", seed=7, **values)
    for values in (
        {"temperature": 0},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"repetition_penalty": 1.3},
        {"top_k": 1, "repetition_penalty": 0.8},
        {"top_p": 0},
        {"temperature": 1.4, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1},
    )
)


def disagreements(
    graph: SamplingGraph, logits: np.ndarray, prompt: Sequence[int], options: Sequence[SamplingOptions] = CHECKED
) -> list[str]:
    """Compare the program with ``RowSampler`` on the same logits and random numbers.

    Args:
        graph: the program.
        logits: float32 [v].
        prompt: tokens that came before.
        options: settings; one row of a batch each.

    Returns:
        One sentence for each row in which they choose differently.
    """
    b, v = len(options), logits.shape[0]
    seen, noise = np.zeros([b, v], dtype=bool), np.empty([b, v])
    wanted = []
    for row, how in enumerate(options):
        wanted.append(RowSampler(how, prompt, (), row).choose(logits))
        noise[row] = np.random.default_rng([how.seed, row]).standard_exponential(v)
        seen[row, list(prompt)] = True
    keys = ("temperature", "top_k", "top_p", "repetition_penalty")
    settings = {key: np.array([getattr(how, key) for how in options]) for key in keys}
    found = graph(logits=np.tile(logits, [b, 1]), seen=seen, noise=noise, **settings)
    return [
        f"sampling with {', '.join(f'{key} {getattr(how, key)}' for key in keys)}: token {int(token)}, not {right}"
        for how, token, right in zip(options, found, wanted)
        if token != right
    ]
