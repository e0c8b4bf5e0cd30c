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


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 4},
        {"rope_theta": 500000.0, "rms_norm_eps": 1e-3},
        {"rope_scaling_type": "linear", "rope_scaling_factor": 4.0},
        {
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ],
    ids=["gqa", "tied", "theta-eps", "linear-scaling", "llama3-scaling"],
)  # fmt: skip
def test_exported_and_converted_back(
    overrides: dict, smollm2: Path, oracle: Callable[..., dict], tmp_path: Path
) -> None:
    """Each config field that changes the numbers survives both directions."""
    from paddlesft.models import load_model, write_hugging_face
    from tests.tiny_models import write_tiny_llama

    source = write_tiny_llama(tmp_path / "tiny", smollm2, **overrides)
    hf = write_hugging_face(source, tmp_path / "hf")
    prompts = [list(range(5, 205)), [9, 8, 7]]
    difference, _ = compare(oracle, load_model(source), hf, prompts, tmp_path)
    assert difference < 1e-5
    again = paddle_logits(load_model(hf), prompts)
    for ours, theirs in zip(again, paddle_logits(load_model(source), prompts)):
        np.testing.assert_array_equal(ours, theirs)
