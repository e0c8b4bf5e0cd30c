"""Engines on tiny models, for their tests: a tokenizer of letters, a model that shows and spoils its calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle

from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.engine import Engine
from paddlesft.inference.engine_requests import Finished, GenerationRequest, Ticket, TokenInfo
from paddlesft.inference.engine_statistics import EngineLimits
from paddlesft.inference.generation import generate
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.inference.step_model import EagerModel
from paddlesft.models.steps.inputs import StepInputs
from tests.models.decoders import blank_filling_models, proofs


class Letters:
    """A tokenizer whose tokens are two of eight letters each, so that stop strings lie across tokens."""

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join("abcdefgh"[one % 8] + "abcdefgh"[one // 8 % 8] for one in ids)


class Watched:
    """A step model that shows its calls.

    Args:
        model: a layer, or another step model.

    Attributes:
        calls: rows and new tokens of each call.
        before: called with the inputs of each call, by the engine's thread.
        after: called with the inputs, the logits [b, v] and the new keys and values of each call, arrays to be changed.
    """

    def __init__(self, model: Any) -> None:
        self._model = EagerModel(model, proofs.PADDING) if isinstance(model, paddle.nn.Layer) else model
        self.config, self.cache_shape, self.prefixes = model.config, self._model.cache_shape, self._model.prefixes
        self.inputs, self.cache_on_device = self._model.inputs, getattr(self._model, "cache_on_device", False)
        self.calls: list[tuple[int, int]] = []
        self.before: Callable[[StepInputs], object] = lambda inputs: None
        self.after: Callable[[StepInputs, np.ndarray, np.ndarray], object] = lambda inputs, logits, new: None

    def __call__(self, inputs: StepInputs, cache: Any) -> Any:
        self.calls.append(inputs.input_ids.shape)
        self.before(inputs)
        logits, new = (np.array(one) for one in self._model(inputs, cache))
        self.after(inputs, logits, new)
        return logits, new


class SmallPieces(CachedRunner):
    """Runs prompts in pieces of at most five tokens, whether or not a reply waits."""

    def advance(self, most: int | None = None) -> Any:
        return super().advance(min(most or 5, 5))


def small(name: str, **overrides: Any) -> Any:
    """Return a random model of a family."""
    made = blank_filling_models.small if name in blank_filling_models.FAMILIES else proofs.small
    return made(name, **overrides)


@contextmanager
def running(model: Any, **limits: Any) -> Iterator[Engine]:
    """Run an engine whose prompts go in small pieces; it must be unbroken at the end."""
    engine = Engine(model, EngineLimits(**limits), proofs.PADDING, SmallPieces).start()
    try:
        yield engine
    finally:
        engine.close()
    assert not engine._thread.is_alive()
    assert engine._batch.size == engine.stats().kv_tokens_used == engine.stats().active == engine.stats().waiting == 0


def wait_until(true: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.002)


def ask(prompt: Sequence[int], **options: Any) -> GenerationRequest:
    """A request for a greedy reply of eight tokens that nothing stops, unless ``options`` say otherwise."""
    own = {key: options.pop(key) for key in ("timeout", "adapter", "logprobs", "row", "request_id") if key in options}
    return GenerationRequest(
        tuple(prompt), SamplingOptions(**{"max_new_tokens": 8, **options}), tokenizer=Letters(), **own
    )


def alone(model: Any, request: GenerationRequest) -> tuple[list[int], str, str]:
    """Return what ``generate`` answers a request by itself: tokens without the stop token, text, finish reason."""
    found = generate(
        model, [request.prompt], request.options, request.stop_token_ids, proofs.PADDING,
        tokenizer=request.tokenizer, rows=[request.row],
    )[0]  # fmt: skip
    return found.token_ids, found.text, found.finish_reason


def collected(ticket: Ticket) -> tuple[Finished, list[TokenInfo]]:
    """Wait for a reply; its pieces must join to its text."""
    text, tokens = "", []
    end = time.monotonic() + 60
    for event in ticket.events(poll=5):
        assert time.monotonic() < end, "no end came"
        if isinstance(event, Finished):
            assert text == event.text and len(tokens) == event.generated_tokens
            return event, tokens
        if event is not None:
            text += event.text
            tokens += event.tokens
    raise AssertionError("the events ended without an end")


def same(ticket: Ticket, expected: tuple[list[int], str, str]) -> Finished:
    """Assert that a reply is the expected one, see ``alone``."""
    event, tokens = collected(ticket)
    ids, text, reason = expected
    assert (event.text, event.finish_reason, event.error) == (text, reason, None)
    found = [one.token_id for one in tokens]
    assert found[: len(ids)] == ids and len(found) - len(ids) in ((0, 1) if reason == "stop" else (0,))
    return event
