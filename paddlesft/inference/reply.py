"""One reply while it is written: its tokens and text, and when it ends. Batches and the serving engine share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from paddlesft.errors import UserError
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.inference.streaming import TextStream
from paddlesft.models.families import family_of


@dataclasses.dataclass
class Generated:
    """One reply.

    Attributes:
        token_ids: the reply without the stop token that ended it.
        finish_reason: "stop" (stop token or stop string) or "length" (``max_new_tokens`` or the model's context).
        text: the reply's text up to the stop string; empty unless ``generate`` was given a tokenizer.
        num_tokens: tokens generated, the stop token included.
    """

    token_ids: list[int]
    finish_reason: str
    text: str = ""
    num_tokens: int = 0


class GrowingReply:
    """A reply being written: decides when it is finished.

    Args:
        index: the caller's number of it.
        limit: most tokens.
        stop_ids: token ids that end it.
        options: ``min_new_tokens`` and stop strings.
        stream: makes its text; None: no text is asked for.

    Attributes:
        finish_reason: None while it grows; see ``Generated``.
        num_tokens: tokens generated, the stop token included.
    """

    def __init__(
        self, index: int, limit: int, stop_ids: frozenset[int], options: SamplingOptions, stream: TextStream | None
    ) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self._limit = limit
        self._stop_ids = stop_ids
        self._min_new_tokens = options.min_new_tokens
        self._stream = stream
        self._token_ids: list[int] = []
        self.num_tokens = 0

    def add(self, token: int) -> str:
        """Take the next token; return the text that became certain."""
        self.num_tokens += 1
        may_stop = self.num_tokens >= self._min_new_tokens
        text = ""
        if token in self._stop_ids:  # the sampler does not choose one before min_new_tokens
            self.finish_reason = "stop"
        else:
            self._token_ids.append(token)
            if self._stream is not None:
                text = self._stream.push(token, may_stop)
            if self.num_tokens >= self._limit:
                self.finish_reason = "length"
        if self._stream is not None:
            if self.finish_reason is not None:
                text += self._stream.finish(may_stop)
            if self._stream.stopped_by is not None:
                self.finish_reason = "stop"
        return text

    def cut(self) -> str:
        """End a reply that has not finished; return the text that was held back."""
        return self._stream.finish(False) if self._stream is not None and self.finish_reason is None else ""

    @property
    def text(self) -> str:
        """What was given out."""
        return self._stream.text if self._stream is not None else ""

    def result(self) -> Generated:
        """Return what was written."""
        return Generated(self._token_ids, self.finish_reason, self.text, self.num_tokens)


def token_limits(config: object, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> list[int]:
    """Return how many tokens each reply may have.

    Args:
        config: PaddleNLP's config of the model.
        prompts: token ids of each prompt.
        options: ``max_new_tokens``.

    Raises:
        UserError: prompts are empty or fill the model's context.
    """
    context = family_of(config).context_length(config)
    problems = []
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            problems.append(f"prompt {index} has no tokens; a reply needs at least one token to follow")
        elif context is not None and len(prompt) >= context:
            problems.append(
                f"prompt {index} has {len(prompt)} tokens; the model's context holds {context}, the reply included"
            )
    if problems:
        raise UserError(
            "Cannot generate: " + "; ".join(problems[:20]) + ". Shorten the prompts (src_length cuts them)."
        )
    return [min(options.max_new_tokens, context - len(prompt) if context else 2**31) for prompt in prompts]
