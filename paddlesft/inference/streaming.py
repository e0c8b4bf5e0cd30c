"""Tokens in, text out, while they come: characters and stop strings are given out when they are certain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddlesft.data.encoding import AS_WRITTEN

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CHARACTER_BYTES = 4  # of UTF-8, at most
LONGEST_WAIT = 16  # tokens that are decoded anew with every token after them, in the hope of a character


class TextStream:
    """Detokenises one reply incrementally.

    Text is held back while it may still change: the bytes of an incomplete UTF-8 character, and an end that may be the
    beginning of a stop string. All pieces joined, and ``finish()``, equal the text of the whole token sequence up to
    the first stop string.

    Args:
        tokenizer: a PaddleNLP tokenizer, or anything else with its ``decode``.
        stop: strings that end the reply.
        skip_special_tokens: leave special tokens out of the text.

    Attributes:
        stopped_by: the stop string that was found, or None.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []
        # Tokens are decoded with the ones before them, because some tokenizers treat the first one differently:
        # [context_start, read) is known text, [read, end) is new.
        self._context_start = 0
        self._read = 0
        self._held = ""
        self._given: list[str] = []
        # They would be decoded again and again, by a model that writes nothing else.
        self._without_text = frozenset(getattr(tokenizer, "all_special_ids", ()) if skip_special_tokens else ())
        self.stopped_by: str | None = None

    @property
    def text(self) -> str:
        """The text given out so far."""
        return "".join(self._given)

    def push(self, token_id: int, may_stop: bool = True) -> str:
        """Add a token.

        Args:
            token_id: the next token of the reply.
            may_stop: whether a stop string that ends in this token counts (not before ``min_new_tokens``).

        Returns:
            The text that became certain, perhaps empty. After a stop string was found nothing is added any more.
        """
        if self.stopped_by is not None or token_id in self._without_text:
            return ""
        self._ids.append(token_id)
        end = len(self._ids)
        known = self._decode(self._context_start, self._read)
        text = self._decode(self._context_start, end)
        if len(text) <= len(known) or text.endswith(REPLACEMENT):
            if end - self._read < LONGEST_WAIT:
                return ""
            # These are no beginnings of a character: a longer one ends within as many tokens as it has bytes.
            whole, end = text, end - CHARACTER_BYTES
            text = self._decode(self._context_start, end)
            if not whole.startswith(text):
                return ""
        self._context_start, self._read = self._read, end
        return self._give_out(text[len(known) :], may_stop)

    def finish(self, may_stop: bool = True) -> str:
        """End the reply.

        Args:
            may_stop: as for ``push``.

        Returns:
            The text that was still held back; an incomplete character shows as U+FFFD.
        """
        if self.stopped_by is not None:
            return ""
        known = self._decode(self._context_start, self._read)
        rest = self._decode(self._context_start, len(self._ids))[len(known) :]
        self._context_start = self._read = len(self._ids)
        certain = self._give_out(rest, may_stop)
        held, self._held = self._held, ""
        self._given.append(held)
        return certain + held

    def _give_out(self, new: str, may_stop: bool) -> str:
        pending = self._held + new
        if may_stop:
            found = [(pending.find(text), text) for text in self._stop if text in pending]
            if found:
                position, self.stopped_by = min(found)
                self._held = ""
                self._given.append(pending[:position])
                return pending[:position]
        keep = max((_overlap(pending, text) for text in self._stop), default=0)
        certain, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self._given.append(certain)
        return certain

    def _decode(self, start: int, end: int) -> str:
        if start == end:
            return ""
        ids = self._ids[start:end]
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens, **AS_WRITTEN)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a true beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
