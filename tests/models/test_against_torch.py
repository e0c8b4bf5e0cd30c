"""The same weights give the same numbers in Paddle and in torch: imported, converted and exported models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "<|im_start|>user\nWhat is 17 + 25? Answer briefly.<|im_end|>\n<|im_start|>assistant\n",
)


def paddle_logits(model: Any, prompts: list[list[int]]) -> list[np.ndarray]:
    import paddle

    with paddle.no_grad():
        return [model(input_ids=paddle.to_tensor([ids]), return_dict=True).logits[0].numpy() for ids in prompts]


def paddle_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    import paddle

    tensor = paddle.to_tensor([ids])
    tokens = model.generate(
        input_ids=tensor,
        attention_mask=paddle.ones_like(tensor),
        max_new_tokens=count,
        decode_strategy="greedy_search",
    )
    return tokens[0][0].tolist()


def compare(
    oracle: Callable[..., dict], model: Any, hf: Path, prompts: list[list[int]], out: Path, greedy: int = 0
) -> Any:
    """Return the largest logit difference over all prompts, and torch's greedy continuations."""
    (out / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    answer = oracle("logits.py", hf, out / "prompts.json", out / "logits.npz", greedy)
    theirs = np.load(out / "logits.npz")
    ours = paddle_logits(model, prompts)
    assert [a.shape for a in ours] == [theirs[str(i)].shape for i in range(len(prompts))]
    return max(float(np.abs(a - theirs[str(i)]).max()) for i, a in enumerate(ours)), answer["greedy"]


@pytest.mark.slow
def test_imported_smollm2_equals_transformers(smollm2: Path, oracle: Callable[..., dict], tmp_path: Path) -> None:
    from paddlesft.models import load_model, load_tokenizer, write_hugging_face

    hf = write_hugging_face(smollm2, tmp_path / "hf")
    tokenizer, model = load_tokenizer(smollm2), load_model(smollm2)
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    difference, greedy = compare(oracle, model, hf, prompts, tmp_path, greedy=24)
    assert difference < 1e-4
    for ids, theirs in zip(prompts, greedy):
        ours = paddle_greedy(model, ids, 24)
        assert ours[: len(theirs)] == theirs


VARIANTS = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "theta": {"rope_theta": 500000.0},
    "eps": {"rms_norm_eps": 1e-2},
    "linear": {"rope_scaling_type": "linear", "rope_scaling_factor": 4.0},
    "dynamic": {
        "rope_scaling_type": "dynamic_ntk", "rope_scaling_factor": 4.0, "max_position_embeddings": 64, "seq_length": 64
    },
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_exported_and_converted_back(variant: str, smollm2: Path, oracle: Callable[..., dict], tmp_path: Path) -> None:
    """Each config field that changes the numbers survives both directions."""
    from paddlesft.models import load_model, write_hugging_face
    from tests.tiny_models import write_tiny_llama

    # Large weights make attention sharp: with the usual small ones positions hardly change the logits.
    source = write_tiny_llama(tmp_path / "tiny", smollm2, initializer_range=0.3, **VARIANTS[variant])
    hf = write_hugging_face(source, tmp_path / "hf")
    prompts = [list(range(5, 205)), [9, 8, 7]]
    model = load_model(source)
    difference, _ = compare(oracle, model, hf, prompts, tmp_path)
    ours = paddle_logits(model, prompts)
    assert difference < 3e-5 * np.abs(ours[0]).max()
    for once, again in zip(ours, paddle_logits(load_model(hf), prompts)):
        np.testing.assert_array_equal(once, again)
    if variant not in ("gqa", "tied"):
        plain = write_tiny_llama(tmp_path / "plain", smollm2, initializer_range=0.3)
        effect = np.abs(paddle_logits(load_model(plain), prompts)[0] - ours[0]).max()
        assert effect > 1000 * difference, "the field has no effect on this model, so the test shows nothing"
