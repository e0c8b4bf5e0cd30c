"""Proof that two models compute the same: their logits on the same prompts, against a bound for the stored type.

b = batch (here 1), s = tokens of a prompt, v = vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Largest allowed logit difference as a share of the largest logit. float32: the sums differ only in their order
# (4e-6 measured on SmolLM2-135M). 16-bit types: every weight is rounded once, to 11 (float16, 2e-3 measured) or
# 8 bits (bfloat16, 9e-3 measured).
RELATIVE_BOUND = {"float32": 5e-5, "float16": 1e-2, "bfloat16": 4e-2}

# Plain text, code, digits, another script: enough that every layer works on varied input.
PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "def add(a, b):\n    return a + b\n\nprint(add(17, 25))",
    "Question: who are you, and what can you do for me today?\nAnswer:",
    "今天天气很好，我们一起去公园吧。",
)


@dataclass(frozen=True)
class Comparison:
    """How far apart two models are.

    Attributes:
        max_abs_diff: the largest difference of two logits.
        bound: what was allowed for it.
        largest_logit: the largest absolute logit of the first model, which the bound is a share of.
        dtype: the stored type that the bound is for.
        prompts: number of prompts.
        tokens: number of tokens in them.
        same_top: share of positions at which both models prefer the same next token.
    """

    max_abs_diff: float
    bound: float
    largest_logit: float
    dtype: str
    prompts: int
    tokens: int
    same_top: float

    @property
    def passed(self) -> bool:
        """Whether the models are equal within the bound (a NaN is never)."""
        return self.max_abs_diff <= self.bound

    def sentence(self) -> str:
        """Say it in one line."""
        relation = "within" if self.passed else "ABOVE"
        return (
            f"largest logit difference {self.max_abs_diff:.2e}, {relation} the bound of {self.bound:.2e} "
            f"for {self.dtype} (logits reach {self.largest_logit:.1f}; {self.prompts} prompts, {self.tokens} tokens; "
            f"same first choice at {self.same_top:.1%} of positions)"
        )


def prompt_ids(tokenizer: Any | None, vocab_size: int) -> list[list[int]]:
    """Return prompts to compare models on: token ids of ``PROMPTS``, or fixed random ids without a tokenizer."""
    if tokenizer is None:
        random = np.random.default_rng(0)
        return [random.integers(0, vocab_size, size).tolist() for size in (8, 24, 48)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    return [list(row) for row in ids if row and max(row) < vocab_size]


def logits_of(model: Any, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Compute a model's logits.

    Args:
        model: a causal language model, plain or with an adapter.
        prompts: token ids; a family whose prompts need marks of their own gets them added.

    Returns:
        One float32 array [s, v] per prompt.
    """
    import paddle

    from paddlesft.models.decoders import decoder_of

    model.eval()
    decoder, found = decoder_of(model), []
    with paddle.no_grad():
        for ids in prompts:
            hidden, _ = decoder.run(paddle.to_tensor([decoder.as_prompt(ids)]))
            found.append(decoder.logits(hidden)[0].astype("float32").numpy())
    return found


def compare_logits(a: Sequence[np.ndarray], b: Sequence[np.ndarray], dtype: str) -> Comparison:
    """Compare the logits of two models.

    Args:
        a: logits of the model that is right, [s, v] per prompt.
        b: logits of the other one.
        dtype: the type that the second model's weights are stored in.
    """
    differences = [np.abs(x - y).max() for x, y in zip(a, b)]
    largest = float(max(np.abs(x).max() for x in a))
    same = [x.argmax(-1) == y.argmax(-1) for x, y in zip(a, b)]
    return Comparison(
        max_abs_diff=float(np.max(differences)),
        bound=RELATIVE_BOUND[dtype] * largest,
        largest_logit=largest,
        dtype=dtype,
        prompts=len(a),
        tokens=sum(len(x) for x in a),
        same_top=float(np.concatenate(same).mean()),
    )


def compare_models(a: Any, b: Any, prompts: Sequence[Sequence[int]], dtype: str = "float32") -> Comparison:
    """Compare two models on the same prompts.

    Args:
        a: the model that is right.
        b: the other one.
        prompts: token ids.
        dtype: the type that ``b``'s weights are stored in; the bound depends on it.

    Returns:
        The comparison; ``.passed`` tells whether they are equal within the bound.
    """
    return compare_logits(logits_of(a, prompts), logits_of(b, prompts), dtype)


def release() -> None:
    """Give back the memory of models that are no longer referred to."""
    import paddle

    gc.collect()
    if paddle.device.is_compiled_with_cuda():
        paddle.device.cuda.empty_cache()
