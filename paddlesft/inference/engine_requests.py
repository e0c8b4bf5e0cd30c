"""What the serving engine is asked, and what it answers with while a reply is written."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from paddlesft.errors import PaddleSFTError, UserError
from paddlesft.inference.sampling import SamplingOptions


class QueueFull(PaddleSFTError):
    """No more requests are taken for now.

    Args:
        waiting: requests that wait already.
        retry_after: seconds after which asking again makes sense.
    """

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"The queue is full: {waiting} requests wait. Try again in {retry_after:.0f} s.")
        self.retry_after = retry_after


class Draining(PaddleSFTError):
    """The engine ends, or has ended, and takes no requests any more."""


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """One reply that is asked for.

    Attributes:
        prompt: token ids, at least one.
        options: how tokens are chosen and when the reply ends.
        stop_token_ids: ids that end the reply, besides those of ``options``.
        tokenizer: makes the reply's text; None: no text, and no stop strings.
        adapter: the engine's name of the adapter; None: the model as it was loaded.
        row: number of this reply among those of one prompt; with the seed it fixes the random numbers.
        logprobs: give the logarithm of each token's probability, and as many alternatives; None: give neither.
        timeout: seconds from submission after which the reply ends with what it has; None: the engine's.
        request_id: for logs.
    """

    prompt: Sequence[int]
    options: SamplingOptions
    stop_token_ids: Sequence[int] = ()
    tokenizer: Any = None
    adapter: str | None = None
    row: int = 0
    logprobs: int | None = None
    timeout: float | None = None
    request_id: str = ""


def check_tokens(request: GenerationRequest, vocabulary: int) -> None:
    """Refuse token ids that the model does not have, and stop strings without a tokenizer.

    Raises:
        UserError: naming them.
    """
    if request.options.stop and request.tokenizer is None:
        raise UserError("Stop strings need the model's tokenizer.")
    for what, tokens in (("The prompt", request.prompt), ("logit_bias", request.options.logit_bias)):
        wrong = [token for token in tokens if not 0 <= token < vocabulary]
        if wrong:
            raise UserError(f"{what} names the token {wrong[0]}; the model has the tokens 0 to {vocabulary - 1}.")


@dataclasses.dataclass(frozen=True)
class TokenInfo:
    """One generated token.

    Attributes:
        token_id: its id.
        logprob: natural logarithm of its probability by the model, before any sampling option; None unless asked for.
        top: ``(token_id, logprob)`` of the most likely tokens, most likely first.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a reply.

    Attributes:
        text: what became certain; may be empty.
        tokens: that were generated since the last piece, the stop token included.
    """

    text: str
    tokens: tuple[TokenInfo, ...] = ()


@dataclasses.dataclass(frozen=True)
class Finished:
    """The end of a reply; always the last event.

    Attributes:
        finish_reason: "stop", "length", "cancelled", "timeout" or "error".
        text: the whole reply, as far as it came.
        prompt_tokens: of the request.
        cached_tokens: of these, how many had been computed for an earlier request.
        generated_tokens: the stop token included.
        error: what went wrong, for "error".
        queue_seconds: from submission to the first computation.
        first_token_seconds: from submission to the first token; None when there was none.
        seconds: from submission to the end.
    """

    finish_reason: str
    text: str
    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int = 0
    error: str | None = None
    queue_seconds: float = 0.0
    first_token_seconds: float | None = None
    seconds: float = 0.0


class Ticket:
    """A request on its way; its events come from the engine's thread and are read by another.

    A reader that stops reading holds up nobody: what it is owed is bounded by the reply's length.

    Attributes:
        request: what was asked.
        submitted: ``time.monotonic()`` of submission.
        cancelled: whether nobody wants the reply any more.
    """

    def __init__(self, request: GenerationRequest, wake: threading.Condition) -> None:
        self.request = request
        self.submitted = time.monotonic()
        self.cancelled = False
        self._wake = wake
        self._events: queue.SimpleQueue[Piece | Finished] = queue.SimpleQueue()

    def cancel(self) -> None:
        """Say that nobody wants the reply any more; it ends at its next token. After its end this does nothing."""
        self.cancelled = True
        with self._wake:
            self._wake.notify_all()

    def put(self, event: Piece | Finished) -> None:
        """Add an event; the engine's thread calls this."""
        self._events.put(event)

    def events(self, poll: float = 0.5) -> Iterator[Piece | Finished | None]:
        """Yield what happens, ``Finished`` last; None whenever nothing came for ``poll`` seconds."""
        while True:
            try:
                event = self._events.get(timeout=poll)
            except queue.Empty:
                yield None
                continue
            yield event
            if isinstance(event, Finished):
                return

    def result(self) -> tuple[Finished, list[TokenInfo]]:
        """Wait for the end; return it with all tokens."""
        return collected(self.events(poll=60))


def collected(events: Iterator[Piece | Finished | None]) -> tuple[Finished, list[TokenInfo]]:
    """Return the end of a reply, and all tokens that came before."""
    tokens: list[TokenInfo] = []
    for event in events:
        if isinstance(event, Piece):
            tokens += event.tokens
        elif event is not None:
            return event, tokens
    raise AssertionError("a ticket's events end with Finished")
