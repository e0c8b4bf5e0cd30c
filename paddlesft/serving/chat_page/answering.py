"""Replies that are written into conversations, several at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

from paddlesft.serving.chat_page.backend import Backend, BackendError, Text
from paddlesft.serving.chat_page.conversation import Chat, Reply

BETWEEN_PICTURES = 0.06  # seconds; a page that is drawn for every token is slower than the model


async def write_replies(
    backend: Backend,
    chats: Sequence[Chat],
    models: Sequence[str | None],
    system: str,
    options: Mapping[str, Any],
    stop: asyncio.Event,
) -> AsyncIterator[None]:
    """Write a reply to the last message of each conversation; yields whenever there is something new to show.

    Closing the iterator ends the requests, so the server stops writing.

    Args:
        backend: writes.
        chats: the conversations.
        models: one for each.
        system: the system message of all; empty: none.
        options: fields of the requests.
        stop: ends the replies where they are.
    """
    news = asyncio.Event()
    writers = []
    for chat, model in zip(chats, models):
        reply = chat.begin_reply(model or "")
        messages = chat.messages(system, until=len(chat.turns) - 1)
        writers.append(asyncio.create_task(_write(backend, reply, messages, options, news)))
    try:
        yield
        stopped = asyncio.create_task(stop.wait())
        writers_and_stop = {*writers, stopped}
        while not stop.is_set() and not all(writer.done() for writer in writers):
            new = asyncio.create_task(news.wait())
            try:
                await asyncio.wait({new, *(t for t in writers_and_stop if not t.done())}, return_when="FIRST_COMPLETED")
            finally:
                new.cancel()
            if news.is_set():
                news.clear()
                yield
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), BETWEEN_PICTURES)
    finally:
        with suppress(UnboundLocalError):
            stopped.cancel()
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
    yield


async def _write(
    backend: Backend, reply: Reply, messages: list[dict[str, str]], options: Mapping[str, Any], news: asyncio.Event
) -> None:
    begun = time.monotonic()
    pieces = 0
    try:
        async with aclosing(backend.reply(reply.model or None, messages, options)) as events:
            async for event in events:
                if isinstance(event, Text):
                    pieces += 1
                    reply.text += event.text
                    reply.first_seconds = reply.first_seconds or time.monotonic() - begun
                    news.set()
                else:
                    reply.finish_reason = event.finish_reason
                    reply.prompt_tokens, reply.tokens = event.prompt_tokens, event.tokens
    except BackendError as problem:
        reply.problem = problem
    except asyncio.CancelledError:
        reply.stopped = True
        raise
    finally:
        reply.seconds = time.monotonic() - begun
        reply.running = False
        news.set()
