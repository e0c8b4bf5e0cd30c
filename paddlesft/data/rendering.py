"""Conversation to token ids and which of them are trained; the only place where either is decided.

The text is cut where each reply begins and where its stop token ends, and the pieces are encoded one by one:

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello!<|im_end|> | \\n<|im_start|>user\\n…
    prompt                                                    | reply, trained   | prompt

So the ids of the prompt a model is asked with are, by construction, a prefix of the ids it was trained on. Where each
piece ends is found by rendering growing parts of the conversation; no knowledge of a template's syntax is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from paddlesft.data.conversation import Conversation, Message
from paddlesft.data.encoding import TextEncoder
from paddlesft.data.jinja_sandbox import TemplateRefusal
from paddlesft.data.literal_text import parted, restored, without_joints
from paddlesft.data.problems import RowProblem
from paddlesft.data.templates import ChatTemplate
from paddlesft.data.tool_text import tool_calls_as_text
from paddlesft.errors import DataError

logger = logging.getLogger("paddlesft")


@dataclass(frozen=True)
class Rendered:
    """Token ids of one conversation.

    Attributes:
        input_ids: all n tokens, prompts and replies.
        trained: n flags; true exactly at the tokens of trained replies and their stop tokens.
        conversation: the messages these tokens stand for.
        first_reply: index of the first token of the first trained reply.
    """

    input_ids: list[int]
    trained: list[bool]
    conversation: Conversation
    first_reply: int

    @property
    def num_trained(self) -> int:
        """How many tokens are trained."""
        return sum(self.trained)


@dataclass(frozen=True)
class TurnEnd:
    """How a template surrounds a reply: ``header`` (what it leaves out of the prompt), ``suffix``, the stop in it."""

    header: str
    suffix: str
    stop: str | None


@dataclass(frozen=True)
class _Piece:
    text: str
    reply: bool = False
    trained: bool = False
    add_eos: bool = False


class _OneReplyEach(Exception):
    """Every reply needs its own sequence: the model takes one at a time, or the template rewrites earlier turns."""


class Renderer:
    """Renders conversations for training and prompts for generation with one template and one tokenizer.

    Args:
        tokenizer: a PaddleNLP tokenizer.
        template: from ``load_template``.
        system_prompt: system text for conversations that have none, in training and generation alike.
        one_reply_per_row: the model reads everything before a reply as one text and writes the reply as another: each
            trained reply becomes a sequence of its own, and the tokenizer's own tokens go around all before it.

    Raises:
        DataError: the template cannot be used for training at all.

    Attributes:
        stop_token_ids: ids that end a reply: end-of-sequence and the template's turn end.
        pad_token_id: the tokenizer's, else end-of-sequence.
        notices: what a user should know about this template with this tokenizer.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: ChatTemplate,
        system_prompt: str | None = None,
        one_reply_per_row: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.one_reply_per_row = one_reply_per_row
        self.template = template
        self.system_prompt = system_prompt or None
        self.encoder = TextEncoder(tokenizer)
        self.pad_token_id = self.encoder.pad_token_id
        self.notices: list[str] = []
        self._native_calls = template.mentions("tool_calls")
        self.turn_end = self._probe()
        eos = self.encoder.eos_token_id
        if self.turn_end.stop is None and eos is None:
            raise DataError(
                f"Template {template.name!r} ends replies with no special token and the tokenizer has no "
                "end-of-sequence token, so a model could never learn to stop. Set eos_token in the tokenizer's config, "
                "or choose a template whose turn end is a token of this tokenizer."
            )
        stop = None if self.turn_end.stop is None else self.encoder.added_ids[self.turn_end.stop]
        self.stop_token_ids = list(dict.fromkeys(i for i in (eos, stop) if i is not None))
        for notice in self.notices:
            logger.info(notice)

    @property
    def reads_special_tokens(self) -> bool:
        """Whether special tokens spelled in a message become tokens: only in "plain", where rows are marked up already.

        Any other template writes all marks itself; in messages they stay text (``literal_text.py``).
        """
        return self.template.pieces_apart

    # --- training -------------------------------------------------------------------------------------------------

    def render(self, conversation: Conversation) -> Rendered:
        """Render a conversation as one sequence.

        Args:
            conversation: must hold a trained reply.

        Raises:
            RowProblem: nothing to train on, the template refuses the conversation, or it needs several sequences
                (``render_rows`` gives those).
        """
        rows = self.render_rows(conversation)
        if len(rows) > 1:
            why = f"under a template that rewrites earlier turns ({self.template.name})"
            why = "for a model that takes one at a time" if self.one_reply_per_row else why
            raise RowProblem(
                "",
                f"{len(rows)} trained replies {why}",
                "one sequence for each trained reply (render_rows), as each is answered with another history",
            )
        return rows[0]

    def render_rows(self, conversation: Conversation) -> list[Rendered]:
        """Render a conversation as the sequences needed to train all its trained replies.

        One sequence is enough unless the template rewrites earlier turns (Qwen3 removes earlier thinking, for
        instance) or the model takes one reply at a time. Then every trained reply becomes a sequence of its own, behind
        exactly the prompt that the model is given when it has to write that reply.

        Args:
            conversation: must hold a trained reply.

        Raises:
            RowProblem: nothing to train on, or the template refuses the conversation.
        """
        conversation = conversation.with_system(self.system_prompt)
        trained = [i for i in conversation.replies() if conversation.messages[i].trained]
        if not trained:
            replies = len(conversation.replies())
            found = f"{replies} replies, none of them to be trained" if replies else "no reply"
            raise RowProblem("", found, "at least one assistant reply that is trained")
        # nothing behind the last trained reply can be learnt from
        conversation = replace(conversation, messages=conversation.messages[: trained[-1] + 1])
        try:
            pieces = self._pieces(conversation.messages, conversation.tools)
        except _OneReplyEach:
            return [self._single_reply(conversation, index) for index in trained]
        return [self._rendered(self._encoded(pieces), conversation)]

    def _single_reply(self, conversation: Conversation, index: int) -> Rendered:
        history = conversation.messages[:index]
        prompt_text = self._prompt_text(history, conversation.tools)
        reply = self._reply_piece(prompt_text, history, conversation.messages[index], conversation.tools)
        ids = [(i, False) for i in self._prompt_ids(history, conversation.tools)]
        ids += [(i, True) for i in self._piece_ids(reply)]
        silent = [replace(m, train=False) if m.role == "assistant" else m for m in history]
        messages = [*silent, conversation.messages[index]]
        return self._rendered(ids, replace(conversation, messages=messages))

    def _rendered(self, tokens: list[tuple[int, bool]], conversation: Conversation) -> Rendered:
        ids = [token for token, _ in tokens]
        trained = [flag for _, flag in tokens]
        if trained[0]:
            raise RowProblem("", "a reply with nothing before it", "a prompt, if only a begin-of-sequence token")
        return Rendered(ids, trained, conversation, trained.index(True))

    # --- generation -----------------------------------------------------------------------------------------------

    def render_prompt(
        self, messages: Sequence[Message | dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """Return the ids a model is given to write the next reply; they end where the reply begins.

        Args:
            messages: the conversation so far, ending with a user or tool message.
            tools: tool descriptions.

        Raises:
            DataError: the template refuses the conversation.
        """
        conversation = Conversation.of(list(messages), tools).with_system(self.system_prompt)
        try:
            return self._prompt_ids(conversation.messages, tools)
        except RowProblem as problem:
            raise DataError(f"Cannot render the prompt: {problem}") from problem

    def prompt_text(
        self, messages: Sequence[Message | dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> str:
        """Return the text of the same prompt, without the tokens a tokenizer adds by itself."""
        conversation = Conversation.of(list(messages), tools).with_system(self.system_prompt)
        return without_joints(self._prompt_text(conversation.messages, tools))

    def _prompt_ids(self, messages: list[Message], tools: Any) -> list[int]:
        try:
            pieces = self._pieces([*messages, Message("assistant", "", train=False)], tools, open_ended=True)
        except _OneReplyEach:
            pieces = [_Piece(self._prompt_text(messages, tools))]
        return [token for token, _ in self._encoded(pieces)]

    # --- text pieces ----------------------------------------------------------------------------------------------

    def _pieces(self, messages: list[Message], tools: Any, open_ended: bool = False) -> list[_Piece]:
        """Prompt and reply pieces of a conversation that ends with a reply, left out with ``open_ended``."""
        if self.one_reply_per_row:
            raise _OneReplyEach
        pieces: list[_Piece] = []
        consumed = ""
        replies = [i for i, message in enumerate(messages) if message.role == "assistant"]
        for index in replies:
            prompt = self._prompt_text(messages[:index], tools)
            if not prompt.startswith(consumed):
                raise _OneReplyEach
            pieces.append(_Piece(prompt[len(consumed) :]))
            if open_ended and index == replies[-1]:
                break
            piece = self._reply_piece(prompt, messages[:index], messages[index], tools)
            pieces.append(piece)
            consumed = prompt + piece.text
        return pieces

    def _reply_piece(self, prompt: str, history: list[Message], reply: Message, tools: Any) -> _Piece:
        full = self._text([*history, reply], tools)
        if not full.startswith(prompt):
            tail = without_joints(prompt)[-30:]
            raise RowProblem(
                "",
                f"a prompt that ends in {tail!r} while template {self.template.name!r} writes the same "
                "reply without that",
                "a template whose prompt for generation is the beginning of what it writes for a finished turn",
            )
        text = full[len(prompt) :]
        end = self.turn_end
        if end.stop is not None and end.stop in text:
            return _Piece(text[: text.rindex(end.stop) + len(end.stop)], True, reply.trained)
        if end.suffix and text.endswith(end.suffix):
            text = text[: -len(end.suffix)]
        return _Piece(text, True, reply.trained, add_eos=True)

    def _prompt_text(self, messages: list[Message], tools: Any) -> str:
        return self._text(messages, tools, add_generation_prompt=True) + self.turn_end.header

    def _text(self, messages: list[Message], tools: Any, add_generation_prompt: bool = False) -> str:
        if not self._native_calls:
            messages = [tool_calls_as_text(message) for message in messages]
        told = [message.for_template() for message in messages]
        if not self.reads_special_tokens:
            told, tools = parted([told, tools], self.encoder.special_text)
        try:
            return restored(self.template.render(told, tools, add_generation_prompt=add_generation_prompt))
        except TemplateRefusal as refusal:
            roles = ", ".join(message.role for message in messages)
            found = f"turns ({roles}) that template {self.template.name!r} refuses: {without_joints(str(refusal))}"
            raise RowProblem("", found, "what the template takes") from refusal

    # --- ids ------------------------------------------------------------------------------------------------------

    def _encoded(self, pieces: list[_Piece]) -> list[tuple[int, bool]]:
        tokens: list[tuple[int, bool]] = []
        for position, piece in enumerate(pieces):
            tokens += [(token, piece.trained) for token in self._piece_ids(piece, first=position == 0)]
        return tokens

    def _piece_ids(self, piece: _Piece, first: bool = False) -> list[int]:
        if first:
            adds = self.template.adds_special_tokens
            return self.encoder.encode_with_special_tokens(piece.text) if adds else self.encoder.encode(piece.text)
        apart = piece.reply and (self.template.pieces_apart or self.one_reply_per_row)
        ids = self.encoder.encode(piece.text) if apart else self.encoder.encode_behind(piece.text)
        return [*ids, self.encoder.eos_token_id] if piece.add_eos else ids

    # --- what the template does with a reply ------------------------------------------------------------------------

    def _probe(self) -> TurnEnd:
        """Render a small conversation and look at what stands around its reply."""
        question, answer = {"role": "user", "content": "first-question"}, "second-answer"
        try:
            asked = self.template.render([question], add_generation_prompt=True)
            closed = self.template.render([question], add_generation_prompt=False)
            told = self.template.render([question, {"role": "assistant", "content": answer}])
        except TemplateRefusal as refusal:
            raise DataError(
                f"Template {self.template.name!r} cannot render one question and one answer: {refusal}. "
                "Choose another one with chat_template."
            ) from refusal
        if told.count(answer) != 1 or "first-question" not in asked:
            raise DataError(
                f"Template {self.template.name!r} does not write the question and the answer exactly once each, so the "
                "reply cannot be told from the rest. Choose another one with chat_template."
            )
        before, _, suffix = told.partition(answer)
        header = ""
        if asked == closed and before.startswith(asked) and before[len(asked) :].strip():
            header = before[len(asked) :]
            self.notices.append(
                f"Template {self.template.name!r} has no prompt for generation; {header!r}, which it writes before "
                "every reply, is added to the prompt in training and generation alike."
            )
        stop = self._first_special(suffix)
        if stop is None:
            eos = self.encoder.eos_text
            written = f" (it writes {suffix.strip()!r}, which is no token of this tokenizer)" if suffix.strip() else ""
            self.notices.append(
                f"Template {self.template.name!r} ends replies with no stop token{written}; {eos!r} is added behind "
                "every reply."
            )
        if "strftime_now" in self.template.source:
            self.notices.append(
                f"Template {self.template.name!r} writes today's date into the prompt; runs on different days see "
                "different tokens."
            )
        return TurnEnd(header, suffix, stop)

    def _first_special(self, text: str) -> str | None:
        known = (token for token in self.encoder.added_ids if token and token in text)
        return min(known, key=lambda token: (text.index(token), -len(token)), default=None)
