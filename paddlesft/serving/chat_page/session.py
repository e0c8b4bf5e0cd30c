"""One visitor of the page: conversations, votes, what is being written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paddlesft.serving.chat_page.answering import write_replies
from paddlesft.serving.chat_page.backend import Backend
from paddlesft.serving.chat_page.conversation import Chat
from paddlesft.serving.chat_page.preferences import PreferenceFile, Votes


@dataclass
class Place:
    """Conversations that are shown together and get the same messages: one, or two side by side."""

    chats: tuple[Chat, ...]
    stop: asyncio.Event | None = None  # while replies are written

    @property
    def running(self) -> bool:
        """Whether replies are being written."""
        return self.stop is not None

    def end(self) -> None:
        """Stop replies that are being written."""
        if self.stop is not None:
            self.stop.set()

    def clear(self) -> None:
        """Begin anew."""
        self.end()
        for chat in self.chats:
            chat.turns.clear()

    async def answer(
        self, backend: Backend, models: Sequence[str | None], system: str, options: Mapping[str, Any]
    ) -> AsyncIterator[None]:
        """Write replies to the last messages; yields when there is something new to show.

        Args:
            backend: writes.
            models: one for each conversation.
            system: the system message; empty: none.
            options: fields of the requests.
        """
        if self.running or not self.chats[0].turns:
            return
        self.stop = asyncio.Event()
        try:
            async for _ in write_replies(backend, self.chats, models, system, options, self.stop):
                yield
        finally:
            self.stop = None
        yield


@dataclass
class Session:
    """What the page holds for one visitor."""

    chat: Place = field(default_factory=lambda: Place((Chat(),)))
    compare: Place = field(default_factory=lambda: Place((Chat(), Chat())))
    votes: Votes = field(default_factory=Votes)
    language: str = "en"

    def vote(self, chat: Chat, turn: int, system: str, liked: bool | None, file: PreferenceFile | None) -> int:
        """Note a thumb on the shown reply of a turn.

        Args:
            chat: the conversation.
            turn: number of the turn.
            system: the system message.
            liked: None takes an opinion back.
            file: collects the pairs of all visitors; or None.

        Returns:
            How many pairs more there are than before.
        """
        reply = chat.turns[turn].reply
        if reply is None or not reply.usable:
            return 0
        before = self.votes.pairs()
        self.votes.set(chat.messages(system, until=turn), reply.text, liked)
        after = self.votes.pairs()
        if file is not None:
            file.update(before, after)
        return len(after) - len(before)

    @property
    def can_choose(self) -> bool:
        """Whether there are two replies to choose from."""
        last = [chat.turns[-1].reply if chat.turns else None for chat in self.compare.chats]
        return not self.compare.running and all(reply is not None and reply.usable for reply in last)

    def choose(self, side: int, system: str, file: PreferenceFile | None) -> str:
        """Note that one of two replies to the last message is better, and let both conversations go on from it.

        Args:
            side: 0 for the left one, 1 for the right one.
            system: the system message.
            file: as for ``vote``.

        Returns:
            The key of the text that tells what came of it.
        """
        chats = self.compare.chats
        if not self.can_choose:
            return "no_replies_to_judge"
        turn = len(chats[0].turns) - 1
        if chats[0].messages(system, until=turn) != chats[1].messages(system, until=turn):
            return "different_prompts"
        better, worse = chats[side].turns[-1], chats[1 - side].turns[-1]
        if better.reply.text == worse.reply.text:
            return "same_replies"
        before = self.votes.pairs()
        prompt = chats[0].messages(system, until=turn)
        self.votes.set(prompt, better.reply.text, True)
        self.votes.set(prompt, worse.reply.text, False)
        if file is not None:
            file.update(before, self.votes.pairs())
        better.continues = worse.continues = better.reply.text
        return "pair_made"
