"""The engine's replies are those of one-by-one generation, whoever else is served and whenever they came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.engine import Engine
from paddlesft.inference.engine_requests import GenerationRequest
from paddlesft.inference.engine_statistics import EngineLimits
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.inference.step_model import EagerModel
from paddlesft.models.families import FAMILIES
from tests.inference.adapters import with_lora
from tests.inference.engine_running import Watched, alone, ask, collected, running, same, small, wait_until
from tests.models.decoders import proofs
from tests.models.steps.proofs import prompts_of

NAMES = [family.name for family in FAMILIES]
DRAWN = {"decode_strategy": "sampling", "seed": 3}


def requests_of(model: Any) -> list[GenerationRequest]:
    """Prompts of 1 to 40 tokens and every kind of option."""
    prompts = prompts_of(model, 3, 40, 9, 1, 23, 17, 6, 12)
    likely = alone(model, ask(prompts[0], max_new_tokens=12))
    options: list[dict[str, Any]] = [
        {"max_new_tokens": 12, "stop": (likely[1][7:10],)},  # begins inside a token
        {"max_new_tokens": 15},
        {**DRAWN, "max_new_tokens": 9, "row": 2},
        {"max_new_tokens": 20, "repetition_penalty": 1.6, "frequency_penalty": 0.5},
        {**DRAWN, "max_new_tokens": 14, "top_p": 0.8, "temperature": 1.3},
        {"max_new_tokens": 1},
        {"max_new_tokens": 10, "logit_bias": {7: -100, 9: 2.5}, "presence_penalty": -0.4},
        {"max_new_tokens": 12, "min_new_tokens": 6, "stop_token_ids": tuple(range(5, proofs.VOCABULARY // 2))},
    ]
    return [ask(prompt, **one) for prompt, one in zip(prompts, options)]


def check(model: Any, runs: Any = None) -> None:
    """Serve requests that come one after the other while earlier ones are answered.

    Args:
        model: a layer, which answers them one by one.
        runs: what the engine runs; None: the model.
    """
    requests = requests_of(model)
    expected = [alone(model, request) for request in requests]
    assert {reason for _, _, reason in expected} == {"stop", "length"}
    watched, numbers, tickets = Watched(model if runs is None else runs), iter(range(len(requests))), {}
    with running(watched, max_rows=3, prefill_tokens=4) as engine:

        def submit() -> None:
            if (number := next(numbers, None)) is not None:
                tickets[number] = engine.submit(requests[number])

        watched.before = lambda inputs: submit() if len(watched.calls) % 3 == 0 else None
        while len(tickets) < len(requests):  # those that are here may all end before the next one's turn
            wait_until(lambda: not engine._present() or len(tickets) == len(requests))
            submit()
        ends = [same(tickets[number], one) for number, one in enumerate(expected)]
        stats = engine.stats()
    assert stats.requests == {
        reason: sum(one.finish_reason == reason for one in ends) for reason in ("stop", "length")
    }  # fmt: skip
    assert stats.generated_tokens == sum(end.generated_tokens for end in ends)
    assert stats.prompt_tokens + stats.cached_tokens == sum(len(request.prompt) for request in requests)
    together = [rows for rows, width in watched.calls if width == 1]
    assert set(together) == {1, 2, 3}  # they came and left
    assert watched.inputs.whole_prompts or max(width for _, width in watched.calls) <= 5


@pytest.mark.parametrize("name", NAMES)
def test_replies_of_every_family_are_those_of_generating_one_by_one(name: str) -> None:
    check(small(name))


def test_replies_with_an_adapter_are_those_of_generating_one_by_one() -> None:
    check(with_lora(small("llama", fuse_attention_qkv=True)))
    check(proofs.with_prefix(small("qwen2")))
    check(proofs.with_prefix(small("chatglm")))


def test_a_window_of_attention_is_kept() -> None:
    check(small("mistral", sliding_window=5))


def test_replies_are_the_same_from_a_cache_of_tensors() -> None:
    model = small("llama")
    accelerated = EagerModel(model, proofs.PADDING)
    accelerated.cache_on_device = True  # as on a GPU
    check(model, accelerated)
    prompt = prompts_of(model, 20)[0]
    with running(accelerated, kv_tokens=100) as engine:
        assert turns(engine, model, prompt) == [0, 20 + 5, 20 + 9 + 5, 20 + 2 * 9 + 5]
        assert same(engine.submit(ask([*prompt[:7], 9])), alone(model, ask([*prompt[:7], 9]))).cached_tokens == 7


@pytest.mark.parametrize("kind", ["paddle", "onnx"])
def test_replies_of_a_graph_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    from paddlesft.export.onnx_graph import write_onnx_graph
    from paddlesft.export.static_graph import write_static_graph
    from paddlesft.inference.onnx_graph import OnnxGraph
    from paddlesft.inference.paddle_graph import PaddleGraph
    from paddlesft.models.graph_directory import write_record

    model = small("llama")
    write, graph = {"paddle": (write_static_graph, PaddleGraph), "onnx": (write_onnx_graph, OnnxGraph)}[kind]
    write_record(write(model, tmp_path), tmp_path)
    check(model, graph(tmp_path, model.config, EagerModel(model, proofs.PADDING).inputs))


@pytest.mark.parametrize("kind", ["nf4", "llm.int8"])
def test_replies_of_a_quantized_model_are_those_of_generating_one_by_one(
    kind: str, tiny_llama: Path, tmp_path: Path
) -> None:
    from paddlesft.models import load_model
    from tests.tiny_quantized import write_quantized

    model = load_model(write_quantized(tmp_path / "q", tiny_llama, kind))
    model.eval()
    check(model)


def test_replies_of_the_real_model_share_what_was_computed(smollm2: Path) -> None:
    from paddlesft.inference.loading import load_for_inference

    loaded = load_for_inference(smollm2)
    system = {"role": "system", "content": "You are a patient teacher who answers in one short sentence."}
    asked = ["What is the capital of France?", "2+2?", "写一句话介绍北京。"]
    prompts = [
        loaded.renderer.render_prompt([system, {"role": "user", "content": text}]) for text in (*asked, asked[0])
    ]
    drawn = SamplingOptions(max_new_tokens=8, decode_strategy="sampling", seed=5, temperature=0.7)
    options = [SamplingOptions(max_new_tokens=10), drawn, SamplingOptions(max_new_tokens=6), drawn]
    requests = [
        GenerationRequest(prompt, one, loaded.stop_token_ids, loaded.tokenizer) for prompt, one in zip(prompts, options)
    ]
    expected = [alone(loaded.model, request) for request in requests]
    with running(loaded.model, max_rows=3) as engine:
        tickets = [engine.submit(request) for request in requests]
        ends = [same(ticket, one) for ticket, one in zip(tickets, expected)]
    shared = next(i for i, pair in enumerate(zip(prompts[0], prompts[1])) if pair[0] != pair[1])
    assert [end.cached_tokens for end in ends] == [0, shared, ends[2].cached_tokens, len(prompts[3]) - 1]
    assert ends[2].cached_tokens >= shared - 1


def turns(engine: Engine, model: Any, prompt: Sequence[int], **options: Any) -> list[int]:
    """Hold a conversation of four turns; return how many tokens of each prompt did not have to be run."""
    found = []
    for turn in range(4):
        request = ask(prompt, max_new_tokens=6, **options)
        end = same(engine.submit(request), alone(model, request))
        found.append(end.cached_tokens)
        prompt = [*prompt, *alone(model, request)[0], 5 + turn, 6, 7]
    return found


def test_earlier_turns_are_not_computed_again() -> None:
    for model in (small("llama"), proofs.with_prefix(small("gpt"))):
        prompt = prompts_of(model, 20)[0]
        with running(model) as engine:
            # the last token of a reply was chosen and not run
            assert turns(engine, model, prompt) == [0, 20 + 5, 20 + 9 + 5, 20 + 2 * 9 + 5]
            assert engine.stats().prefix_cache_tokens == 20 + 3 * 9 + 5
            assert turns(engine, model, prompt, **DRAWN)[0] == 19  # all but the one whose logits are needed
        with running(model, prefix_cache_tokens=0) as engine:
            assert turns(engine, model, prompt) == [0] * 4
    model = small("chatglm")  # prompts attend in both directions
    prompt = prompts_of(model, 9)[0]
    with running(model) as engine:
        for _ in range(2):
            assert same(engine.submit(ask(prompt)), alone(model, ask(prompt))).cached_tokens == 0


def test_choices_of_one_prompt_run_it_once() -> None:
    model = small("llama")
    requests = [ask(prompts_of(model, 30)[0], row=row, **DRAWN) for row in range(3)]
    expected = [alone(model, request) for request in requests]
    assert len({text for _, text, _ in expected}) == 3
    with running(model) as engine:
        tickets = [engine.submit(request) for request in requests]
        assert [same(ticket, one).cached_tokens for ticket, one in zip(tickets, expected)] == [0, 29, 29]
        assert engine.stats().prompt_tokens == 30 + 2


def test_adapters_do_not_share_what_was_computed() -> None:
    model = small("llama")
    with running(model) as engine:
        cached = [
            collected(engine.submit(ask([5, 6, 7, 8], adapter=name)))[0].cached_tokens for name in (None, "one", "one")
        ]
    assert cached == [0, 0, 3]


def test_logprobs_are_those_of_the_model() -> None:
    model = small("llama")
    request = ask(prompts_of(model, 9)[0], logprobs=3, max_new_tokens=4, temperature=1.7, **DRAWN)
    with running(model) as engine:
        _, tokens = collected(engine.submit(request))
        none = collected(engine.submit(ask(request.prompt, logprobs=0)))[1][0]
    text = list(request.prompt)
    for one in tokens:
        logits = np.asarray(CachedRunner(EagerModel(model)).prefill([text]), dtype=np.float64)[0]
        truth = logits - np.log(np.exp(logits).sum())
        order = np.argsort(-truth)[:3]
        assert [token for token, _ in one.top] == order.tolist()
        assert np.allclose([one.logprob, *(value for _, value in one.top)], truth[[one.token_id, *order]], atol=1e-4)
        text.append(one.token_id)
    assert none.logprob is not None and none.top == ()


def test_limits_hold_while_many_are_served() -> None:
    model = small("llama")
    watched, budget = Watched(model), 150
    limits = EngineLimits(max_rows=4, kv_tokens=budget, prefill_tokens=4)
    sizes, reserved = [], []
    with running(watched, **vars(limits)) as engine:

        def look(inputs: object) -> None:
            joining = engine._joining
            sizes.append(engine._batch.size + (joining[1].size if joining else 0))
            reserved.append(engine.stats().kv_tokens_used)

        watched.before = look
        draw = np.random.default_rng(0)
        requests = [
            ask(proofs.rows_of(int(length), seed=number)[0], max_new_tokens=int(tokens))
            for number, (length, tokens) in enumerate(zip(draw.integers(1, 40, 16), draw.integers(1, 25, 16)))
        ]
        long = ask(proofs.rows_of(70)[0], max_new_tokens=80)
        requests.insert(6, long)
        tickets = [engine.submit(request) for request in requests]
        ends = [same(ticket, alone(model, request)) for ticket, request in zip(tickets, requests)]
    assert max(sizes) <= budget and max(reserved) == budget  # the long one fills it
    assert max(rows for rows, _ in watched.calls) >= 3
    begun = [ticket.submitted + end.queue_seconds for ticket, end in zip(tickets, ends)]
    assert begun == sorted(begun)  # nobody overtakes the long one
