"""What the page holds of a conversation, and what its buttons do to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from paddlesft.serving.chat_page.backend import BackendError


@dataclass
class Reply:
    """One reply of a model, while it is written and afterwards.

    Attributes:
        model: which wrote it.
        text: so far.
        running: whether it is still being written.
        problem: why it did not come, or not to its end.
        stopped: whether the user stopped it.
        finish_reason: as the server says.
        prompt_tokens: of the prompt; None: not known.
        tokens: of the reply; None: not known.
        counted: whether the server said that number; else it is the number of pieces that came.
        first_seconds: from the request to the first text; None: none came.
        seconds: from the request to the end.
    """

    model: str = ""
    text: str = ""
    running: bool = True
    problem: BackendError | None = None
    stopped: bool = False
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    counted: bool = True
    first_seconds: float | None = None
    seconds: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether the conversation can go on from it."""
        return bool(self.text.strip()) and not self.running and self.problem is None

    @property
    def tokens_per_second(self) -> float | None:
        """How fast it was written after its first token; None where that is not known."""
        if self.tokens is None or self.tokens < 2 or self.first_seconds is None:
            return None
        writing = self.seconds - self.first_seconds
        return (self.tokens - 1) / writing if writing > 0 else None


@dataclass
class Turn:
    """A message of the user and the replies to it, of which one is shown.

    Attributes:
        prompt: the message.
        replies: all of them, the latest last.
        shown: the number of the one that is shown.
        continues: what the conversation goes on from, where that is another reply than the shown one.
    """

    prompt: str
    replies: list[Reply] = field(default_factory=list)
    shown: int = -1
    continues: str | None = None

    @property
    def reply(self) -> Reply | None:
        """The reply that is shown."""
        return self.replies[self.shown] if self.replies else None

    @property
    def answer(self) -> str | None:
        """The text that the conversation goes on from."""
        if self.continues is not None:
            return self.continues
        return self.reply.text if self.reply is not None and self.reply.usable else None


@dataclass
class Chat:
    """A conversation."""

    turns: list[Turn] = field(default_factory=list)

    def messages(self, system: str, until: int | None = None) -> list[dict[str, str]]:
        """Return the conversation as requests and training rows have it.

        Args:
            system: the system message; empty: none.
            until: number of the turn whose prompt is the last message; None: everything that was answered.
        """
        found = [{"role": "system", "content": system}] if system.strip() else []
        for turn in self.turns if until is None else self.turns[:until]:
            if turn.answer is not None:
                found.append({"role": "user", "content": turn.prompt})
                found.append({"role": "assistant", "content": turn.answer})
        if until is not None:
            found.append({"role": "user", "content": self.turns[until].prompt})
        return found

    def ask(self, prompt: str) -> None:
        """Add a message of the user."""
        self.turns.append(Turn(prompt))

    def begin_reply(self, model: str) -> Reply:
        """Add an empty reply to the last message; one that brought nothing makes room for it."""
        turn = self.turns[-1]
        turn.replies = [reply for reply in turn.replies if reply.usable]
        turn.replies.append(Reply(model))
        turn.shown, turn.continues = len(turn.replies) - 1, None
        return turn.replies[-1]

    def undo(self) -> str:
        """Take back the last message with its replies, and return it."""
        return self.turns.pop().prompt if self.turns else ""

    def edit(self, number: int, prompt: str) -> None:
        """Replace a message; everything behind it is taken back."""
        del self.turns[number:]
        self.ask(prompt)

    @property
    def has_other_replies(self) -> bool:
        """Whether the last message has more than one reply."""
        return bool(self.turns) and len(self.turns[-1].replies) > 1

    def show_next_reply(self) -> None:
        """Show another of the last message's replies, and go on from that."""
        turn = self.turns[-1]
        turn.shown = (turn.shown + 1) % len(turn.replies)
        turn.continues = None
