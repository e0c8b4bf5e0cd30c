"""Generation on the real model: equal to paddlenlp, to transformers, and to itself in any batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import paddle
import pytest

from paddlesft.inference.generation import generate
from paddlesft.inference.loading import Loaded, load_for_inference
from paddlesft.inference.sampling import SamplingOptions

QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea and the wind.",
    "请用一句话介绍一下北京。",
    "List three uses of a paperclip, each in a few words, and say which one you like best and why.",
)
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def loaded(smollm2: Path) -> Loaded:
    return load_for_inference(smollm2)


@pytest.fixture(scope="module")
def prompts(loaded: Loaded) -> list[list[int]]:
    return [loaded.renderer.render_prompt([{"role": "user", "content": text}]) for text in QUESTIONS]


@pytest.mark.slow
def test_a_greedy_batch_equals_paddlenlp_and_transformers(
    loaded: Loaded, prompts: list[list[int]], smollm2: Path, oracle: Callable[..., dict], tmp_path: Path
) -> None:
    from paddlesft.models import write_hugging_face

    options = SamplingOptions(max_new_tokens=NEW_TOKENS)
    ours = generate(loaded.model, prompts, options, loaded.stop_token_ids, tokenizer=loaded.tokenizer)
    assert ours[0].text == "The capital of France is Paris." and ours[0].finish_reason == "stop"
    hf = write_hugging_face(smollm2, tmp_path / "hf")
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    torch = oracle("logits.py", hf, tmp_path / "prompts.json", tmp_path / "logits.npz", NEW_TOKENS)["greedy"]
    stop = loaded.stop_token_ids[0]
    for prompt, reply, theirs in zip(prompts, ours, torch):
        expected = [*reply.token_ids, stop] if reply.finish_reason == "stop" else reply.token_ids
        assert theirs == expected
        ids = paddle.to_tensor([prompt])
        upstream = loaded.model.generate(
            input_ids=ids, attention_mask=paddle.ones_like(ids), max_new_tokens=NEW_TOKENS,
            decode_strategy="greedy_search", eos_token_id=stop, pad_token_id=stop,
        )  # fmt: skip
        assert upstream[0].numpy()[0].tolist() == expected


@pytest.mark.slow
def test_sampled_replies_do_not_depend_on_the_batch(loaded: Loaded, prompts: list[list[int]]) -> None:
    options = SamplingOptions(max_new_tokens=16, decode_strategy="sampling", temperature=0.9, top_p=0.9, seed=7)
    together = generate(loaded.model, prompts, options, loaded.stop_token_ids)
    alone = [generate(loaded.model, [p], options, loaded.stop_token_ids, rows=[i])[0] for i, p in enumerate(prompts)]
    assert together == alone
    pairs = [
        reply
        for start in (0, 2)
        for reply in generate(
            loaded.model, prompts[start : start + 2], options, loaded.stop_token_ids, rows=[start, start + 1]
        )
    ]
    assert pairs == together
