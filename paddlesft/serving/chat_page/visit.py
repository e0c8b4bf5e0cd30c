"""What a visitor does on the page, without the page: asking one model or two, stopping, choosing between replies."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from paddlesft.serving.chat_page.client import ApiClient, BackendError, Growing
from paddlesft.serving.chat_page.conversation import Reply, Talk, preference
from paddlesft.serving.chat_page.texts import text

REFRESH_SECONDS = 0.05  # between two pictures of a growing reply


@dataclass
class Visit:
    """What one visitor has said and heard.

    Attributes:
        left: the conversation with the first model.
        right: that with the second model, in comparisons.
        chosen: preference rows from comparisons.
    """

    left: Talk = field(default_factory=Talk)
    right: Talk = field(default_factory=Talk)
    chosen: list[dict[str, Any]] = field(default_factory=list)

    def preferences(self, system: str) -> list[dict[str, Any]]:
        """Return all preference rows."""
        return [*self.left.preferences(system), *self.right.preferences(system), *self.chosen]

    def choose(self, left_is_better: bool, system: str) -> bool:
        """Note which of the last two replies is better; return False where there are not two different ones."""
        turns = [talk.turns[-1] if talk.turns else None for talk in (self.left, self.right)]
        if None in turns or turns[0].message != turns[1].message:
            return False
        replies = [turn.reply.text if turn.reply is not None else "" for turn in turns]
        if not all(replies) or replies[0] == replies[1]:
            return False
        chosen, rejected = replies if left_is_better else reversed(replies)
        self.chosen.append(preference(self.left.prompt(system), chosen, rejected))
        return True


class Stops:
    """Which visitors want their replies to stop; asked by the threads that write them."""

    def __init__(self) -> None:
        self._asked: dict[str, threading.Event] = {}

    def begin(self, visitor: str) -> threading.Event:
        """Return an event that is set when the visitor presses stop; one that is there already is set."""
        self.stop(visitor)
        self._asked[visitor] = threading.Event()
        return self._asked[visitor]

    def stop(self, visitor: str) -> None:
        """Stop what is being written for a visitor."""
        asked = self._asked.pop(visitor, None)
        if asked is not None:
            asked.set()


def facts_of(growing: Growing, language: str, stopped: bool = False) -> str:
    """Return the line under a reply: tokens, speed, why it ended."""
    parts = [text("facts", language, tokens=growing.tokens)]
    if growing.rate is not None:
        parts.append(text("rate", language, rate=growing.rate))
    if growing.first_seconds is not None:
        parts.append(text("first", language, seconds=growing.first_seconds))
    if growing.prompt_tokens is not None:
        parts.append(text("prompt", language, tokens=growing.prompt_tokens))
    if stopped:
        parts.append(text("stopped", language))
    elif growing.finish_reason == "length":
        parts.append(text("length", language))
    return " · ".join(parts)


def problem_of(error: BackendError, url: str, language: str) -> str:
    """Return what the page says about an error."""
    return text(error.kind, language, url=url, detail=error.detail).replace("  ", " ")


def ask(
    client: ApiClient,
    talks: list[tuple[Talk, str]],
    system: str,
    parameters: dict[str, Any],
    language: str,
    stop: threading.Event,
) -> Iterator[list[str]]:
    """Answer the last message of each conversation, all at the same time.

    Args:
        client: of the service.
        talks: conversations that end with a message, each with the model that answers it. The replies are added.
        system: system prompt; "" for none.
        parameters: of the requests.
        language: of the line under each reply.
        stop: ends all replies when it is set; what came stays.

    Yields:
        What went wrong so far, whenever there is something new to show.
    """
    news: queue.SimpleQueue[tuple[int, Growing | BackendError | None]] = queue.SimpleQueue()
    for number, (talk, model) in enumerate(talks):
        prompt = talk.prompt(system)
        arguments = (client, model, prompt, parameters, stop, lambda event, number=number: news.put((number, event)))
        threading.Thread(target=_read, args=arguments, daemon=True).start()
    replies: list[Reply | None] = [None] * len(talks)
    latest: list[Growing | None] = [None] * len(talks)
    problems: list[str] = []
    open_streams, shown = len(talks), 0.0
    try:
        while open_streams and not stop.is_set():
            try:
                number, event = news.get(timeout=0.1)
            except queue.Empty:
                continue
            if event is None:
                open_streams -= 1
            elif isinstance(event, BackendError):
                problems.append(problem_of(event, client.url, language))
            else:
                latest[number] = event
                if replies[number] is None:
                    replies[number] = Reply(model=talks[number][1])
                    talks[number][0].turns[-1].replies.append(replies[number])
                replies[number].text = event.text
                replies[number].facts = facts_of(event, language)
            if open_streams and time.monotonic() - shown > REFRESH_SECONDS:
                shown = time.monotonic()
                yield problems
        for reply, growing, (talk, _) in zip(replies, latest, talks):
            if reply is None or growing is None:
                continue
            reply.facts = facts_of(growing, language, stopped=growing.finish_reason is None)
            if not reply.text and growing.finish_reason is None:  # stopped or broken before the first word
                talk.turns[-1].replies.remove(reply)
        yield list(dict.fromkeys(problems))
    finally:
        stop.set()


def _read(
    client: ApiClient,
    model: str,
    messages: list[dict[str, str]],
    parameters: dict[str, Any],
    stop: threading.Event,
    tell: Any,
) -> None:
    stream = client.chat(model, messages, parameters)
    try:
        for growing in stream:
            if stop.is_set():
                break
            tell(growing)
    except BackendError as error:
        tell(error)
    finally:
        stream.close()  # and with it the connection, so that the service stops writing
        tell(None)
