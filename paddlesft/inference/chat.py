"""A conversation with a model: turns, history, taking back, asking again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from paddlesft.data.conversation import Conversation, Message
from paddlesft.inference.generation import generate
from paddlesft.inference.loading import Loaded
from paddlesft.inference.prompts import fit_prompt, prompt_limit
from paddlesft.inference.sampling import SamplingOptions


@dataclass
class Reply:
    """One reply of the model.

    Attributes:
        text: the reply, as far as it came.
        finish_reason: "stop", "length", or "interrupted" when it was stopped by ``should_stop``.
        prompt_tokens: tokens the model was given.
        num_tokens: tokens generated.
        first_seconds: time until the first token.
        seconds: time for the whole reply.
        dropped_rounds: oldest rounds of the conversation that did not fit into the prompt.
        cut_tokens: tokens cut from the beginning of a message that alone was too long.
    """

    text: str = ""
    finish_reason: str = "interrupted"
    prompt_tokens: int = 0
    num_tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0
    dropped_rounds: int = 0
    cut_tokens: int = 0

    @property
    def rate(self) -> float:
        """Generated tokens per second after the first."""
        decoding = self.seconds - self.first_seconds
        return (self.num_tokens - 1) / decoding if self.num_tokens > 1 and decoding > 0 else 0.0


class _Stopped(Exception):
    """Leaves the decode loop between two tokens."""


class ChatSession:
    """Holds a conversation and asks the model for its replies.

    Args:
        loaded: the model.
        options: how to generate. Each reply draws its own random numbers, so asking again gives another reply.
        system: system message, or None.
        src_length: most tokens of a prompt; the oldest rounds are left out when it is full.
        keep_history: False answers every message as if it were the first.

    Attributes:
        messages: the conversation so far, without the system message.
        system: the system message in force, or None.
    """

    def __init__(
        self,
        loaded: Loaded,
        options: SamplingOptions,
        system: str | None = None,
        src_length: int = 1024,
        keep_history: bool = True,
    ) -> None:
        self.messages: list[Message] = []
        self.system = system
        self._loaded = loaded
        self._options = options
        self._limit = prompt_limit(src_length, options.max_new_tokens, loaded.context_length)
        self._keep_history = keep_history
        self._num_replies = 0

    def ask(
        self,
        text: str,
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Reply:
        """Send a message and get the reply; both join the conversation.

        Args:
            text: what the user says.
            on_text: called with each piece of the reply as it becomes certain.
            should_stop: asked after each token; True ends the reply there. What was written stays.

        Returns:
            The reply. When it was stopped before any text came, the message leaves the conversation again.
        """
        self.messages.append(Message("user", text))
        try:
            reply = self._reply(on_text, should_stop)
        except BaseException:
            self.messages.pop()
            raise
        if reply.text or reply.finish_reason != "interrupted":
            self.messages.append(Message("assistant", reply.text))
        else:
            self.messages.pop()
        return reply

    def retry(
        self, on_text: Callable[[str], None] | None = None, should_stop: Callable[[], bool] | None = None
    ) -> Reply | None:
        """Ask the last message again; None when there is none. The old reply comes back if nothing new came."""
        before = list(self.messages)
        text = self.undo()
        if text is None:
            return None
        try:
            reply = self.ask(text, on_text, should_stop)
        except BaseException:
            self.messages = before
            raise
        if not reply.text and reply.finish_reason == "interrupted":
            self.messages = before
        return reply

    def undo(self) -> str | None:
        """Take back the last message and its reply; return the message, None when there is none."""
        while self.messages:
            message = self.messages.pop()
            if message.role == "user":
                return message.content
        return None

    def clear(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages = []

    def conversation(self) -> Conversation:
        """Return the conversation with its system message."""
        return Conversation(list(self.messages)).with_system(self.system)

    def as_training_row(self) -> dict[str, list[dict[str, str]]]:
        """Return the conversation as a row of a training file: ``{"messages": [{"role", "content"}, ...]}``."""
        return {"messages": [{"role": m.role, "content": m.content} for m in self.conversation().messages]}

    def _reply(self, on_text: Callable[[str], None] | None, should_stop: Callable[[], bool] | None) -> Reply:
        conversation = self.conversation()
        if not self._keep_history:
            conversation = Conversation(self.messages[-1:]).with_system(self.system)
        prompt = fit_prompt(self._loaded.renderer, conversation, self._limit)
        reply = Reply(prompt_tokens=len(prompt.ids), dropped_rounds=prompt.dropped_rounds, cut_tokens=prompt.cut_tokens)
        start = time.perf_counter()

        def take(row: int, token: int, text: str) -> None:
            reply.seconds = time.perf_counter() - start
            reply.num_tokens += 1
            if reply.num_tokens == 1:
                reply.first_seconds = reply.seconds
            reply.text += text
            if text and on_text is not None:
                on_text(text)
            if should_stop is not None and should_stop():
                raise _Stopped

        row, self._num_replies = self._num_replies, self._num_replies + 1
        try:
            generated = generate(
                self._loaded.model,
                [prompt.ids],
                self._options,
                self._loaded.stop_token_ids,
                self._loaded.pad_token_id,
                on_token=take,
                tokenizer=self._loaded.tokenizer,
                rows=[row],
            )
            reply.finish_reason = generated[0].finish_reason
        except _Stopped:
            pass
        return reply
