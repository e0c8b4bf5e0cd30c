"""Where adapters start: values that follow from the seed and the weight's name, whatever the layout of the run.

PaddleNLP draws each weight from a generator of the process. A process that holds a part of a layer, or other layers
than its neighbour, then starts from other numbers than a single process does, and the part of a matrix is drawn as
wide as a matrix of that size. Here the whole weight is drawn from a generator of its own and cut afterwards, so that a
run starts with the same adapter however it is divided. The distributions are PaddleNLP's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np


def generator_of(seed: int, name: str) -> np.random.Generator:
    """Return the random generator of one weight.

    Args:
        seed: ``training.seed``.
        name: of the weight in the whole model.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def uniform(seed: int, name: str, shape: Sequence[int], limit: float) -> np.ndarray:
    """Draw a whole weight uniformly.

    Args:
        seed: ``training.seed``.
        name: of the weight in the whole model.
        shape: of the whole weight.
        limit: values are from -limit to limit.

    Returns:
        float32 of that shape.
    """
    values = generator_of(seed, name).random(shape, dtype=np.float32)
    values *= 2 * limit
    values -= limit
    return values


def low_rank_input(seed: int, name: str, shape: Sequence[int]) -> np.ndarray:
    """Draw LoRA's A [inputs, rank] as PaddleNLP does: Kaiming uniform with a negative slope of sqrt(5).

    That is ``gain * sqrt(3 / inputs)`` with a gain of ``sqrt(2 / (1 + 5))`` (He et al. 2015, arXiv:1502.01852).
    """
    return uniform(seed, name, shape, 1 / math.sqrt(shape[0]))


def layer_weight(seed: int, name: str, shape: Sequence[int]) -> np.ndarray:
    """Draw a weight of an Embedding or a Linear as Paddle does: Xavier uniform for matrices, zeros for biases.

    Matrices [inputs, outputs] lie within ``sqrt(6 / (inputs + outputs))`` (Glorot and Bengio 2010).
    """
    if len(shape) < 2:
        return np.zeros(shape, dtype=np.float32)
    return uniform(seed, name, shape, math.sqrt(6 / (shape[0] + shape[1])))
