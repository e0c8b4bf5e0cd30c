"""How much of a prompt may run before the replies get their next token."""

from __future__ import annotations

SECONDS = (
    0.25  # that replies may stand still; a longer piece of a prompt computes faster, 2 times from 16 to 128 tokens
)
FIRST, LEAST, MOST = 64, 16, 512  # tokens of a piece: before anything is known, and at all
COUNTED = 8  # tokens of a piece whose time says something


class PromptPace:
    """Chooses the size of a prompt's pieces, by the time that the last ones took.

    Args:
        tokens: of every piece; None: as many as take ``SECONDS``.
    """

    def __init__(self, tokens: int | None) -> None:
        self._fixed = tokens
        self._each: float | None = None  # seconds of a token

    @property
    def tokens(self) -> int:
        """Tokens that may run between two tokens of the replies."""
        if self._fixed is not None:
            return self._fixed
        if self._each is None:
            return FIRST
        return min(max(int(SECONDS / self._each) // LEAST * LEAST, LEAST), MOST)

    def ran(self, tokens: int, seconds: float) -> None:
        """Take notice of a piece that has been run."""
        if tokens >= COUNTED:
            each = max(seconds, 1e-9) / tokens
            self._each = each if self._each is None else (self._each + each) / 2
