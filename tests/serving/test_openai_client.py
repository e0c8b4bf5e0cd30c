"""OpenAI's own client against a running server with a tiny model: chat, completion, streaming, errors, stop, usage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from paddlesft.inference.eager import EagerRunner
from paddlesft.inference.engine_statistics import EngineLimits
from paddlesft.inference.generation import generate
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models.load import load_model
from tests.serving.running import RunningServer, running

HELLO = [{"role": "user", "content": "hello there"}]
GREEDY = {"model": "tiny", "temperature": 0}


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def reply(client: openai.OpenAI) -> str:
    """Twelve tokens that the tiny model says to hello."""
    answer = client.chat.completions.create(messages=HELLO, max_tokens=12, **GREEDY)
    assert answer.choices[0].finish_reason == "length" and len(answer.choices[0].message.content) > 10
    return answer.choices[0].message.content


def alone(server: RunningServer, model: Any, max_tokens: int, **options: Any) -> str:
    """What generation outside of the server says to hello."""
    served = server.service.models.default
    prompt = served.renderer.render_prompt(HELLO)
    chosen = SamplingOptions(max_new_tokens=max_tokens, **options)
    return generate(model, [prompt], chosen, served.stop_token_ids, tokenizer=served.tokenizer)[0].text


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    loaded = load_model(tiny_llama)
    loaded.eval()
    return loaded


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError, match=r"There is no model 'gpt-4' here\. Served: tiny\."):
        client.models.retrieve("gpt-4")


def test_a_chat_is_answered_as_generation_answers(
    client: openai.OpenAI, tiny_server: RunningServer, model: Any, reply: str
) -> None:
    assert reply == alone(tiny_server, model, 12)
    sampled = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=1.5, top_p=0.9, seed=7, extra_body={"top_k": 50}
    )
    options = {"decode_strategy": "sampling", "temperature": 1.5, "top_p": 0.9, "top_k": 50, "seed": 7}
    assert sampled.choices[0].message.content == alone(tiny_server, model, 12, **options) != reply


def test_usage_counts_prompt_and_reply(client: openai.OpenAI, tiny_server: RunningServer) -> None:
    answer = client.chat.completions.create(messages=HELLO, max_tokens=5, **GREEDY)
    prompt = len(tiny_server.service.models.default.renderer.render_prompt(HELLO))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 5)
    assert answer.usage.total_tokens == prompt + 5
    several = client.chat.completions.create(messages=HELLO, max_tokens=5, n=3, **GREEDY)
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (prompt, 15)


def test_a_stream_says_the_same_in_pieces(client: openai.OpenAI, reply: str) -> None:
    chunks = list(
        client.chat.completions.create(
            messages=HELLO, max_tokens=12, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    *told, last = [chunk for chunk in chunks if chunk.choices]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == reply
    assert len(told) > 5 and all(chunk.choices[0].finish_reason is None for chunk in told)
    assert last.choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 12 and not chunks[-1].choices


def test_the_bytes_of_a_stream(tiny_server: RunningServer) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "stream": True, **GREEDY}
    with httpx.stream("POST", f"{tiny_server.url}/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1])


def test_a_stop_text_ends_the_reply_across_tokens(client: openai.OpenAI, reply: str) -> None:
    stop = reply[6:9]
    wanted = reply[: reply.index(stop)]
    for given in (stop, ["never said", stop]):
        answer = client.chat.completions.create(messages=HELLO, max_tokens=12, stop=given, **GREEDY)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (wanted, "stop")
    stream = client.chat.completions.create(messages=HELLO, max_tokens=12, stop=stop, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted


def test_several_replies_differ_and_come_again_with_their_seed(client: openai.OpenAI) -> None:
    def texts(**more: Any) -> list[str]:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=8, n=3, temperature=2, seed=3, **more
        )
        return [choice.message.content for choice in answer.choices]

    first = texts()
    assert len(set(first)) == 3 and texts() == first
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=8, n=3, temperature=2, seed=3, stream=True
    )
    pieces = ["", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == first


def test_logprobs_are_those_of_a_forward_pass(
    client: openai.OpenAI, tiny_server: RunningServer, model: Any
) -> None:
    answer = client.chat.completions.create(messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3, **GREEDY)
    told = answer.choices[0].logprobs.content
    served = tiny_server.service.models.default
    prompt = served.renderer.render_prompt(HELLO)
    runner = EagerRunner(model, 0)
    logits = runner.prefill([prompt]).numpy()[0].astype(np.float64)
    for one in told:
        expected = np.sort(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())[::-1]
        assert np.allclose([top.logprob for top in one.top_logprobs], expected[:3], atol=1e-4)
        assert one.logprob == one.top_logprobs[0].logprob
        assert one.bytes is None or bytes(one.bytes).decode() == one.token
        logits = runner.step(np.array([int(logits.argmax())])).numpy()[0].astype(np.float64)


def test_completions_take_texts_and_tokens(client: openai.OpenAI, tiny_server: RunningServer, model: Any) -> None:
    served = tiny_server.service.models.default
    ids = served.renderer.encoder.encode_with_special_tokens("hello there")
    options = SamplingOptions(max_new_tokens=6)
    expected = generate(model, [ids], options, served.stop_token_ids, tokenizer=served.tokenizer)[0].text
    for prompt in ("hello there", ids, ["hello there", "hello there"], [ids]):
        answer = client.completions.create(prompt=prompt, max_tokens=6, **GREEDY)
        assert {choice.text for choice in answer.choices} == {expected}
        assert answer.usage.completion_tokens == 6 * len(answer.choices)
    stream = client.completions.create(prompt="hello there", max_tokens=6, stream=True, logprobs=1, **GREEDY)
    chunks = [chunk for chunk in stream if chunk.choices]
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert sum(len(chunk.choices[0].logprobs.tokens) for chunk in chunks if chunk.choices[0].logprobs) == 6
    assert client.completions.create(prompt="hello", **GREEDY).usage.completion_tokens == 16  # OpenAI's default


def test_penalties_and_biases_change_the_reply(client: openai.OpenAI, tiny_server: RunningServer) -> None:
    def chosen(**change: Any) -> list[str]:
        answer = client.chat.completions.create(messages=HELLO, max_tokens=6, logprobs=True, **GREEDY, **change)
        return [one.token for one in answer.choices[0].logprobs.content]

    liked = {"300": 3.0}
    same = chosen(logit_bias=liked)
    assert same == [tiny_server.service.models.default.tokenizer.decode([300])] * 6
    assert len(set(chosen(logit_bias=liked, presence_penalty=2.0)[:2])) == 1  # 3 - 2 is still the most
    assert chosen(logit_bias=liked, frequency_penalty=2.0)[:3] != same[:3]


REFUSED = [
    ({"messages": []}, "messages", "invalid_value", "messages: List should have at least 1 item"),
    ({"temprature": 1}, "temprature", "unknown_parameter", "temprature is not known. Did you mean temperature?"),
    ({"temperature": 3, "top_p": "x"}, "temperature", "invalid_value", "top_p: Input should be a valid number"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter", "not supported"),
    ({"functions": []}, "functions", "unsupported_parameter", "it was replaced by tools"),
    ({"n": 100}, "n", "invalid_value", "n is 100; at most 8 replies"),
    ({"max_tokens": 10**6}, "max_tokens", "max_tokens_too_large", "replies have at most 2048 tokens"),
    ({"stop": [""]}, "stop", "invalid_value", "stop holds an empty text"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value", "only goes with stream: true"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "only goes with logprobs: true"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value", "tool_choice can be auto or none"),
    ({"logit_bias": {"x": 1.0}}, "logit_bias", "invalid_value", "found the token 'x'; allowed are the model's, 0 to"),
    ({"logit_bias": {"99999999": 1.0}}, "logit_bias", "invalid_value", "found the token '99999999'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content", "invalid_value", "parts of type 'image_url' are not supported, only text",
    ),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value", 'found "robot"'),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value", "messages[0] has no content"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "code", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named(
    change: dict[str, Any], param: str | None, code: str, said: str, tiny_server: RunningServer
) -> None:
    body = {"model": "tiny", "messages": HELLO, **change}
    answer = httpx.post(f"{tiny_server.url}/v1/chat/completions", json=body, timeout=30)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert said in error["message"]
    assert error["param"] == param


def test_the_client_raises_by_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=9)
    assert error.value.param == "temperature" and error.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        client.chat.completions.create(model="tiny", messages=HELLO, tools=[tool])
    long = [{"role": "user", "content": "word " * 4000}]
    with pytest.raises(openai.BadRequestError, match=r"The prompt has \d+ tokens; .* at most") as error:
        client.chat.completions.create(model="tiny", messages=long)
    assert error.value.code == "context_length_exceeded"


BROKEN = [
    (b"{", "application/json", 400, "invalid_json", "line 1, column 2"),
    (b'{"a": NaN}', "application/json", 400, "invalid_json", "NaN is no number of JSON"),
    (b'{"a": "\\ud800"}', "application/json", 400, "invalid_json", "surrogate"),
    (b"\xff", "application/json", 400, "invalid_json", "not UTF-8"),
    (b"[1]", "application/json", 400, "invalid_json", "found a list"),
    (b"[" * 100_000, "application/json", 400, "invalid_json", "nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_json", "too long"),
    (b"{}", "text/plain", 415, "unsupported_content_type", "'text/plain'; send application/json"),
    (b"{}", "", 415, "unsupported_content_type", "found none"),
]


@pytest.mark.parametrize(("body", "kind", "status", "code", "said"), BROKEN, ids=lambda value: str(value)[:20])
def test_bodies_that_are_no_json(
    body: bytes, kind: str, status: int, code: str, said: str, tiny_server: RunningServer
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = httpx.post(f"{tiny_server.url}/v1/chat/completions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert said in answer.json()["error"]["message"]


def test_paths_and_methods(tiny_server: RunningServer) -> None:
    missing = httpx.get(f"{tiny_server.url}/v1/engines")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "unknown_path"
    wrong = httpx.get(f"{tiny_server.url}/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["message"] == "/v1/chat/completions takes POST; found GET."


def test_a_reply_can_be_sent_back_as_clients_do(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(messages=HELLO, max_tokens=4, **GREEDY).choices[0].message
    for sent in (reply, {**reply.model_dump(), "audio": None}):  # the second is what other clients make of it
        history = [*HELLO, sent, {"role": "user", "content": "more"}]
        answer = client.chat.completions.create(messages=history, max_tokens=4, **GREEDY)
        assert answer.usage.prompt_tokens > 40


def test_more_replies_than_fit_are_refused_and_a_long_prompt_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"with n 8 ask for 128 replies; .* at most 40 at a time"):
        client.completions.create(model="tiny", prompt=["x"] * 16, n=8)
    with pytest.raises(openai.BadRequestError, match="The prompt has") as error:
        client.completions.create(model="tiny", prompt="word " * 4000)
    assert error.value.param == "prompt"


def test_a_full_queue_says_when_to_come_back(tiny_llama: Path) -> None:
    with running(tiny_llama, EngineLimits(max_rows=1, max_queue=0)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        more = {"max_tokens": 400, "extra_body": {"min_tokens": 400}, **GREEDY}
        stream = client.chat.completions.create(messages=HELLO, stream=True, **more)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="The queue is full") as error:
            client.chat.completions.create(messages=HELLO, **more)
        assert int(error.value.response.headers["retry-after"]) >= 1
        stream.close()
        server.wait_until_idle(5)
        assert client.chat.completions.create(messages=HELLO, max_tokens=2, **GREEDY).usage.completion_tokens == 2
        client.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(stream: bool, tiny_server: RunningServer) -> None:
    body = {"messages": HELLO, "max_tokens": 1500, "min_tokens": 1500, "stream": stream, **GREEDY}
    before = tiny_server.engine.stats().requests.get("cancelled", 0)
    url = f"{tiny_server.url}/v1/chat/completions"
    with pytest.raises(httpx.ReadTimeout), httpx.stream("POST", url, json=body, timeout=0.3) as answer:
        for _ in answer.iter_lines():
            raise httpx.ReadTimeout("enough was read")
    tiny_server.wait_until_idle(5)
    assert tiny_server.engine.stats().requests["cancelled"] == before + 1


def test_requests_run_at_the_same_time(client: openai.OpenAI, tiny_server: RunningServer) -> None:
    streams = [
        client.chat.completions.create(
            messages=HELLO, max_tokens=200, stream=True, extra_body={"min_tokens": 200}, **GREEDY
        )
        for _ in range(3)
    ]
    for stream in streams:
        next(iter(stream))
    end = time.monotonic() + 10
    while tiny_server.engine.stats().active < 3 and time.monotonic() < end:
        time.sleep(0.005)
    assert tiny_server.engine.stats().active == 3
    for stream in streams:
        stream.close()
    tiny_server.wait_until_idle(5)
