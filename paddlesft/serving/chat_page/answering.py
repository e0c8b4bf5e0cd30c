"""Replies that are written into conversations, several at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
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
    stopped = asyncio.create_task(stop.wait())
    try:
        yield
        while not stopped.done() and not all(writer.done() for writer in writers):
            new = asyncio.create_task(news.wait())
            await asyncio.wait({new, stopped}, return_when=asyncio.FIRST_COMPLETED)
            new.cancel()
            news.clear()
            yield
            await asyncio.wait({stopped}, timeout=BETWEEN_PICTURES)
    finally:
        for task in (stopped, *writers):
            task.cancel()
        await asyncio.gather(stopped, *writers, return_exceptions=True)
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
        if reply.tokens is None and pieces:
            reply.tokens, reply.counted = pieces, False
        reply.seconds = time.monotonic() - begun
        reply.running = False
        news.set()
