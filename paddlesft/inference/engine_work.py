"""A request inside the serving engine: the reply as it grows, and what whoever waits is told."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from paddlesft.inference.engine_requests import Finished, Piece, Ticket, TokenInfo
from paddlesft.inference.reply import GrowingReply
from paddlesft.inference.sampling import RowSampler, log_probabilities, most_likely
from paddlesft.inference.streaming import TextStream


class Work:
    """A request inside the engine.

    Args:
        ticket: of the request.
        columns: of the cache that it may come to fill.
        limit: most tokens of the reply.

    Attributes:
        ticket: as given.
        columns: as given.
        reply: what is written.
        sampler: chooses its tokens.
        tokens: the prompt and what was generated, the stop token included.
        cached_tokens: tokens of the prompt that did not have to be run.
    """

    def __init__(self, ticket: Ticket, columns: int, limit: int) -> None:
        request = ticket.request
        self.ticket, self.columns = ticket, columns
        stop = frozenset(request.stop_token_ids) | frozenset(request.options.stop_token_ids)
        stream = TextStream(request.tokenizer, request.options.stop) if request.tokenizer is not None else None
        self.reply = GrowingReply(0, limit, stop, request.options, stream)
        self.sampler = RowSampler(request.options, request.prompt, stop, request.row)
        self.tokens = list(request.prompt)
        self.cached_tokens = 0
        self._begun: float | None = None
        self._first: float | None = None

    def unwanted(self, timeout: float | None) -> str:
        """Return "cancelled" or "timeout" for a reply that has to end, else "".

        Args:
            timeout: the engine's; the request's own comes before it.
        """
        if self.ticket.cancelled:
            return "cancelled"
        own = self.ticket.request.timeout
        seconds = timeout if own is None else own
        return "timeout" if seconds is not None and time.monotonic() - self.ticket.submitted > seconds else ""

    def begin(self) -> None:
        """Note that computing begins."""
        self._begun = time.monotonic()

    def take(self, token: int, logits: Any, row: int) -> None:
        """Add a token that was chosen.

        Args:
            token: its id.
            logits: [b, v], array or tensor.
            row: of the logits that it was chosen from.
        """
        self._first = self._first or time.monotonic()
        self.tokens.append(token)
        text = self.reply.add(token)
        self.ticket.put(Piece(text, (self._info(token, logits, row),)))

    def _info(self, token: int, logits: Any, row: int) -> TokenInfo:
        count = self.ticket.request.logprobs
        if count is None:
            return TokenInfo(token)
        chosen = logits[row]
        found = log_probabilities(chosen if isinstance(chosen, np.ndarray) else chosen.astype("float32").numpy())
        likely = most_likely(found, min(count, found.size)) if count else np.empty(0, dtype=np.int64)
        likely = likely[np.lexsort((likely, -found[likely]))]
        return TokenInfo(token, float(found[token]), tuple((int(one), float(found[one])) for one in likely))

    def end(self, reason: str, error: str | None = None) -> None:
        """Tell whoever waits that this is all.

        Args:
            reason: see ``Finished.finish_reason``.
            error: what went wrong.
        """
        if reason == "timeout" and (rest := self.reply.cut()):
            self.ticket.put(Piece(rest))
        now, since = time.monotonic(), self.ticket.submitted
        self.ticket.put(
            Finished(
                finish_reason=reason,
                text=self.reply.text,
                prompt_tokens=len(self.ticket.request.prompt),
                cached_tokens=self.cached_tokens,
                generated_tokens=self.reply.num_tokens,
                error=error,
                queue_seconds=(self._begun or now) - since,
                first_token_seconds=None if self._first is None else self._first - since,
                seconds=now - since,
            )
        )
