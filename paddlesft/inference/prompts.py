"""Conversations to prompts of bounded length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paddlesft.data.conversation import Conversation
    from paddlesft.data.rendering import Renderer


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt that respects a limit.

    Attributes:
        ids: token ids, at most as many as allowed.
        dropped_rounds: oldest rounds of the conversation that were left out.
        cut_tokens: tokens cut from the beginning because the newest round alone was too long.
    """

    ids: list[int]
    dropped_rounds: int = 0
    cut_tokens: int = 0

    @property
    def shortened(self) -> bool:
        """Whether anything was left out."""
        return bool(self.dropped_rounds or self.cut_tokens)


def fit_prompt(renderer: Renderer, conversation: Conversation, limit: int) -> FittedPrompt:
    """Render a conversation for generation; leave out its oldest rounds until it fits.

    Args:
        renderer: the one renderer, so that training and generation see the same tokens.
        conversation: ends with the message to be answered.
        limit: most tokens of the prompt.

    Returns:
        The prompt. Where the newest round alone is too long, its beginning is cut, as PaddleNLP does.
    """
    ids = renderer.render_prompt(conversation.messages, conversation.tools)
    if len(ids) <= limit:
        return FittedPrompt(ids)
    shorter = list(_without_oldest_rounds(conversation))
    # the fewest rounds to drop, by bisection: histories of strangers may have hundreds
    too_few, enough, fitting = -1, len(shorter), None
    while too_few + 1 < enough:
        middle = (too_few + enough) // 2
        ids = renderer.render_prompt(shorter[middle].messages, shorter[middle].tools)
        if len(ids) <= limit:
            enough, fitting = middle, ids
        else:
            too_few = middle
    if fitting is not None:
        return FittedPrompt(fitting, enough + 1)
    newest = shorter[-1] if shorter else conversation
    ids = renderer.render_prompt(newest.messages, newest.tools)
    # What the tokenizer puts before every text stays there, as it does in training.
    head = ids[: min(renderer.encoder.opening_length(ids), limit - 1)]
    return FittedPrompt(head + ids[len(ids) - limit + len(head) :], len(shorter), len(ids) - limit)


def _without_oldest_rounds(conversation: Conversation) -> Iterator[Conversation]:
    """Yield a conversation with ever fewer rounds, down to its newest."""
    shorter = conversation.without_first_round()
    while shorter is not None:
        yield shorter
        shorter = shorter.without_first_round()


def prompt_limit(src_length: int, max_new_tokens: int, context: int | None) -> int:
    """Return the most tokens a prompt may have.

    Args:
        src_length: what the user allows.
        max_new_tokens: what the reply may need.
        context: what the model holds, or None. The reply gets its room first, but never more than half of it.
    """
    if context is None:
        return src_length
    return max(1, min(src_length, context - min(max_new_tokens, context // 2)))
