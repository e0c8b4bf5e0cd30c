"""The engine under load and faults: replies that are cancelled, too late, too many or spoilt leave the others alone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paddlesft.errors import DataError, UserError
from paddlesft.inference.engine import Engine
from paddlesft.inference.engine_requests import Draining, Finished, QueueFull, Ticket
from paddlesft.inference.engine_statistics import EngineCounters, EngineLimits
from paddlesft.models.steps.inputs import StepInputs
from tests.inference.engine_running import Letters, Watched, alone, ask, collected, running, same, small, wait_until
from tests.models.decoders import proofs

SHORT, MIDDLE, OTHER, LONG = proofs.rows_of(4, 9, 6, 60)


@pytest.fixture(scope="module")
def model() -> Any:
    return small("llama")


class Gate:
    """Stops the engine before a call of its model, while the test does something.

    Args:
        watched: the model.
        when: tells the call, by its inputs; the first one by default.
    """

    def __init__(self, watched: Watched, when: Callable[[StepInputs], object] = lambda inputs: True) -> None:
        self._open, self._reached, self._when = threading.Event(), threading.Event(), when
        watched.before = self

    def __call__(self, inputs: StepInputs) -> None:
        if self._when(inputs):
            self._reached.set()
            assert self._open.wait(30)

    def wait(self) -> Gate:
        assert self._reached.wait(30)
        return self

    def open(self) -> None:
        self._open.set()


def reason(ticket: Ticket) -> str:
    return collected(ticket)[0].finish_reason


def slow(model: Any, seconds: float = 0.02) -> Watched:
    watched = Watched(model)
    watched.before = lambda inputs: time.sleep(seconds)
    return watched


def test_what_is_cancelled_ends_at_once_wherever_it_is(model: Any) -> None:
    watched = slow(model, 0.005)
    with running(watched, max_rows=2, prefill_tokens=4) as engine:
        kept, cancelled = engine.submit(ask(SHORT, max_new_tokens=200)), engine.submit(ask(MIDDLE, max_new_tokens=400))
        wait_until(lambda: engine.stats().active == 2)
        waiting = engine.submit(ask(OTHER))
        gate = Gate(watched).wait()
        long = engine.submit(ask(LONG))
        waiting.cancel()
        cancelled.cancel()
        calls = len(watched.calls)
        second = Gate(watched, lambda inputs: inputs.input_ids.shape[1] > 1 and inputs.position_ids.max() > 20)
        gate.open()
        second.wait()  # in the middle of the long prompt
        assert reason(waiting) == reason(cancelled) == "cancelled"
        rows = [rows for rows, _ in watched.calls[calls:]]
        assert rows == [1] * len(rows) and engine.stats().active == engine.stats().waiting == 1
        long.cancel()
        calls = len(watched.calls)
        second.open()
        assert collected(long)[0].generated_tokens == 0
        same(kept, alone(model, ask(SHORT, max_new_tokens=200)))
        assert {width for _, width in watched.calls[calls:]} == {1}  # no further piece
        kept.cancel()  # it has ended
        wait_until(lambda: not engine._present())
        assert engine._batch.size == 0
        same(engine.submit(ask(OTHER)), alone(model, ask(OTHER)))
        assert engine.stats().requests == {"cancelled": 3, "length": 2}


def test_a_reply_that_takes_too_long_ends_with_what_it_has(model: Any) -> None:
    with running(slow(model), max_rows=1, request_timeout=0.5) as engine:
        # its last token's letters may begin a stop string: they are held back, and come with the end
        first = engine.submit(ask(SHORT, max_new_tokens=400, stop=("abcdefgh" * 3,)))
        second = engine.submit(ask(OTHER, timeout=0.1))
        last = engine.submit(ask(MIDDLE, timeout=60, max_new_tokens=4))
        end, tokens = collected(first)
        assert end.finish_reason == "timeout" and end.error is None and 0.5 < end.seconds < 5
        ended = first.submitted + end.seconds
        assert end.text == Letters().decode([one.token_id for one in tokens]) != ""
        end, tokens = collected(second)
        assert (end.finish_reason, tokens, end.first_token_seconds) == ("timeout", [], None)
        assert 0.1 < end.queue_seconds == end.seconds
        assert second.submitted + end.seconds < ended  # it did not wait for the first one's end
        assert reason(last) == "length"


def test_no_more_wait_than_may(model: Any) -> None:
    watched = Watched(model)
    with running(watched, max_rows=1, max_queue=2) as engine:
        gate = Gate(watched)
        first = engine.submit(ask(SHORT))
        gate.wait()
        rest = [engine.submit(ask(OTHER)) for _ in range(2)]
        with pytest.raises(QueueFull, match=r"The queue is full: 2 requests wait\. Try again in 1 s\.") as caught:
            engine.submit(ask(OTHER))
        assert caught.value.retry_after >= 1 and engine.stats().rejected == 1
        gate.open()
        for ticket in (first, *rest):
            assert reason(ticket) == "length"


def test_the_time_to_ask_again_follows_the_rate_at_which_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    counters = EngineCounters()
    assert counters.seconds_for(5) == 5  # nothing is known yet
    for _ in range(10):
        counters.ended("stop")
        now[0] += 3
    assert counters.seconds_for(4) == pytest.approx(12) and counters.seconds_for(100) == 60
    now[0] += 300  # long ago
    assert counters.seconds_for(2) == 2


@pytest.mark.parametrize("when", ["prompt", "reply"])
def test_numbers_that_are_none_end_their_own_row_only(when: str, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(model)

    def spoil(inputs: Any, logits: np.ndarray, new: np.ndarray) -> None:
        for row, adapter in enumerate(inputs.adapters):  # the model has none: the name marks the row
            if adapter == "spoilt" and inputs.position_ids[row].max() >= (0 if when == "prompt" else len(MIDDLE) + 2):
                logits[row], new[:, row] = np.nan, np.nan

    watched.after = spoil
    requests = [ask(SHORT, max_new_tokens=25), ask(LONG, max_new_tokens=20, repetition_penalty=1.3), ask(OTHER)]
    with running(watched, max_rows=3, prefill_tokens=4) as engine, caplog.at_level(logging.WARNING, "paddlesft"):
        spoilt = engine.submit(ask(MIDDLE, max_new_tokens=30, adapter="spoilt", request_id="req-7"))
        tickets = [engine.submit(request) for request in requests]  # the third one takes the row that is free
        end, tokens = collected(spoilt)
        assert end.finish_reason == "error" and end.error.startswith("The model's largest logit is nan")
        assert len(tokens) == (0 if when == "prompt" else 3)
        for ticket, request in zip(tickets, requests):
            same(ticket, alone(model, request))
        assert engine.stats().requests == {"error": 1, "length": 3} and engine.failed is None
        # nothing spoilt was kept for texts that begin alike
        again = collected(engine.submit(ask(MIDDLE, adapter="spoilt")))[0]
        assert (again.cached_tokens, again.finish_reason) == ((0, "error") if when == "prompt" else (8, "error"))
    assert "Request req-7 ends with an error: The model's largest logit is nan" in caplog.text


def test_an_error_of_the_model_ends_what_was_running_and_no_more(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(model)

    def fail(inputs: Any) -> None:
        if inputs.input_ids.shape[0] == 2:
            raise RuntimeError("out of memory at /some/where")

    watched.before = fail
    with running(watched, max_rows=2) as engine:
        tickets = [engine.submit(ask(prompt, request_id=f"req-{len(prompt)}")) for prompt in (SHORT, MIDDLE, OTHER)]
        ends = [collected(ticket)[0] for ticket in tickets]
        assert [end.finish_reason for end in ends] == ["error", "error", "length"]
        assert ends[0].error == ends[1].error == "The model failed: RuntimeError."  # no path, no message
        assert engine.failed is None and engine.stats().failures == 1 and engine.stats().prefix_cache_tokens == 6 + 7
        same(engine.submit(ask(LONG)), alone(model, ask(LONG)))
    assert "out of memory at /some/where" in caplog.text and "req-4" in caplog.text and "req-9" in caplog.text


def test_a_model_that_always_fails_ends_the_engine(model: Any) -> None:
    watched = Watched(model)
    with running(watched, max_rows=1) as engine:
        assert reason(engine.submit(ask(SHORT))) == "length"

        def fail(inputs: Any) -> None:
            raise MemoryError

        watched.before = fail
        for _ in range(2):
            assert collected(engine.submit(ask(SHORT)))[0].error == "The model failed: MemoryError."
        watched.before = lambda inputs: None
        assert reason(engine.submit(ask(SHORT))) == "length"  # counted from the beginning again
        watched.before = fail
        tickets = [engine.submit(ask(SHORT)) for _ in range(5)]
        errors = [collected(ticket)[0].error for ticket in tickets]
        assert errors == [*["The model failed: MemoryError."] * 3, *[engine.failed] * 2]
        assert engine.failed == "The model failed: MemoryError. It failed 3 times in a row."
        with pytest.raises(Draining, match="It failed 3 times in a row"):
            engine.submit(ask(SHORT))
        assert not engine.drain(0)


def test_what_a_family_cannot_read_is_refused_at_once() -> None:
    model = small("chatglm")
    with running(model) as engine:
        with pytest.raises(DataError, match=r"A prompt of 3 tokens has no \[gMASK\]<sop>"):
            engine.submit(ask([7, 8, 9]))
        assert engine.stats().failures == engine.stats().waiting == 0


def test_a_tokenizer_that_fails_ends_its_own_row_only(model: Any) -> None:
    class Broken(Letters):
        def decode(self, ids: Any, **_: object) -> str:
            raise KeyError(ids[-1])

    request = ask(MIDDLE, request_id="req-3")
    with running(model, max_rows=2) as engine:
        other = engine.submit(ask(SHORT))
        object.__setattr__(request, "tokenizer", Broken())
        assert collected_error(engine.submit(request)) == "The reply's text cannot be made."
        same(other, alone(model, ask(SHORT)))


def collected_error(ticket: Ticket) -> str | None:
    return next(event for event in ticket.events(30) if isinstance(event, Finished)).error


def test_draining_lets_replies_end_and_takes_no_more(model: Any) -> None:
    watched = slow(model, 0.005)
    with running(watched, max_rows=2) as engine:
        tickets = [engine.submit(ask(prompt, max_new_tokens=20)) for prompt in (SHORT, MIDDLE, OTHER)]
        done: list[bool] = []
        thread = threading.Thread(target=lambda: done.append(engine.drain(60)))
        thread.start()
        wait_until(lambda: engine._draining)
        with pytest.raises(Draining, match=r"The server is stopping\."):
            engine.submit(ask(SHORT))
        for ticket, prompt in zip(tickets, (SHORT, MIDDLE, OTHER)):
            same(ticket, alone(model, ask(prompt, max_new_tokens=20)))
        thread.join(30)
        assert done == [True] and not engine._thread.is_alive()


def test_draining_ends_after_its_time(model: Any) -> None:
    with running(slow(model), max_rows=1) as engine:
        tickets = [engine.submit(ask(SHORT, max_new_tokens=400)) for _ in range(2)]
        began = time.monotonic()
        assert engine.drain(0.2) is False
        assert 0.2 <= time.monotonic() - began < 5
        assert [collected(ticket)[0].error for ticket in tickets] == ["The server is stopping."] * 2


def test_an_engine_that_never_began_ends_what_waits(model: Any) -> None:
    engine = Engine(model)
    ticket = engine.submit(ask(SHORT))
    engine.close()
    assert collected(ticket)[0].error == "The server is stopping."


def test_readers_hear_when_nothing_comes(model: Any) -> None:
    ticket = Engine(model).submit(ask(SHORT))
    began = time.monotonic()
    assert next(ticket.events(poll=0.05)) is None and time.monotonic() - began >= 0.05


def test_what_cannot_be_served_is_refused(model: Any) -> None:
    engine = Engine(model, EngineLimits(kv_tokens=50))
    for request, message in (
        (
            ask([5, proofs.VOCABULARY]),
            rf"The prompt names the token {proofs.VOCABULARY}; the model has the tokens 0 to",
        ),
        (ask([-1]), "The prompt names the token -1; the model has the tokens 0 to"),
        (ask(SHORT, logit_bias={99999: 1}), "logit_bias names the token 99999; the model has the tokens 0 to"),
        (ask([]), "prompt 0 has no tokens"),
        (
            ask(SHORT, max_new_tokens=47),
            r"The prompt has 4 tokens and its reply may have 47; this server has room for 50 together\. Shorten",
        ),
    ):
        with pytest.raises(UserError, match=message):
            engine.submit(request)
    textless = ask(SHORT, stop=("a",))
    object.__setattr__(textless, "tokenizer", None)
    with pytest.raises(UserError, match=r"Stop strings need the model's tokenizer\."):
        engine.submit(textless)
    engine.submit(ask(SHORT, max_new_tokens=46))
    unsteady = small("llama", rope_scaling_type="dynamic_ntk", rope_scaling_factor=2.0)
    with pytest.raises(UserError, match=r"This model cannot be served: its rotary .* paddlesft models shows"):
        Engine(unsteady)


def test_all_wrong_limits_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        EngineLimits(
            max_rows=0, max_queue=-1, kv_tokens=1, prefill_tokens=True, request_timeout=0, prefix_cache_tokens=1.5
        )
    assert str(caught.value).splitlines()[1:] == [
        "  - max_rows is 0; allowed: a whole number from 1.",
        "  - max_queue is -1; allowed: a whole number from 0.",
        "  - kv_tokens is 1; allowed: null or a whole number from 2.",
        "  - prefill_tokens is True; allowed: null or a whole number from 1.",
        "  - prefix_cache_tokens is 1.5; allowed: a whole number from 0.",
        "  - request_timeout is 0; allowed: null or a number of seconds above 0.",
    ]
