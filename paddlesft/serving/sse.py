"""Replies as server-sent events: ``data: {...}`` lines, comments while nothing comes, ``data: [DONE]`` at the end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flask import Response, request

from paddlesft.inference.engine_requests import Finished, Piece
from paddlesft.serving.errors import ApiError
from paddlesft.serving.service import end_error

logger = logging.getLogger("paddlesft")

SILENCE = 1.0  # seconds after which a comment is sent, which also shows whether the client is there
POLL = 0.2  # seconds between two looks at the connection while nothing comes
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

Chunks = Callable[[int, "Piece | Finished"], list[dict[str, Any]]]


class EventStream:
    """The body of an answer. Closing it cancels what is still being written, whether or not it has begun.

    Args:
        tickets: of the replies.
        opening: objects sent at once.
        chunks: called with the number of a reply and what happened to it; returns the objects to send.
        closing: called when all have ended; returns the last objects.
        gone: whether the client has closed its connection.
    """

    def __init__(
        self,
        tickets: Sequence[Any],
        opening: list[dict[str, Any]],
        chunks: Chunks,
        closing: Callable[[], list[dict[str, Any]]],
        gone: Callable[[], bool],
    ) -> None:
        self._tickets, self._gone = tickets, gone
        self._events = self._made(opening, chunks, closing)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        """End the stream; waitress calls this when all was sent, or the client has gone."""
        self._events.close()
        for ticket in self._tickets:
            ticket.cancel()

    def _made(
        self, opening: list[dict[str, Any]], chunks: Chunks, closing: Callable[[], list[dict[str, Any]]]
    ) -> Iterator[bytes]:
        try:
            yield b"".join(map(data, opening)) or PING
            sent = time.monotonic()
            for number, event in happenings(self._tickets):
                if event is None:
                    if self._gone():
                        return
                    if time.monotonic() - sent > SILENCE:
                        sent = time.monotonic()
                        yield PING
                    continue
                error = end_error(event) if isinstance(event, Finished) else None
                if error is not None:
                    yield data(error.body())
                    return
                text = b"".join(map(data, chunks(number, event)))
                if text:
                    sent = time.monotonic()
                    yield text
            yield b"".join(map(data, closing())) + DONE
        except GeneratorExit:
            raise
        except Exception:
            logger.exception("A stream failed.")
            yield data(ApiError(500, "Something went wrong in the server.", "server_error").body())


def happenings(tickets: Sequence[Any]) -> Iterator[tuple[int, Piece | Finished | None]]:
    """Yield what happens to several replies, with their numbers, until all have ended; None while nothing does."""
    poll = POLL if len(tickets) == 1 else 0.01
    streams = {number: ticket.events(poll) for number, ticket in enumerate(tickets)}
    while streams:
        for number, events in list(streams.items()):
            event = next(events)
            yield number, event
            if isinstance(event, Finished):
                del streams[number]


def data(content: dict[str, Any]) -> bytes:
    """Return one event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def client_has_gone() -> Callable[[], bool]:
    """Return what tells whether the client of the current request has closed its connection."""
    return request.environ.get("waitress.client_disconnected", lambda: False)


def answer(stream: EventStream) -> Response:
    """Return the HTTP answer that sends a stream."""
    return Response(
        stream, mimetype="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    )
