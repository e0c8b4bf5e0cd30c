"""How fast replies were generated: prompts and replies counted apart, because they cost differently."""

from __future__ import annotations

import dataclasses
import time


@dataclasses.dataclass
class Throughput:
    """Counts and seconds of generation.

    Attributes:
        replies: number of replies.
        prompt_tokens: tokens of their prompts.
        generated_tokens: tokens generated, stop tokens included.
        prompt_seconds: time until the first token of each batch.
        decode_seconds: time from the first token of each batch to its last.
    """

    replies: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generated_rate(self) -> float:
        """Generated tokens per second; the first token of a reply comes from its prompt and is not counted."""
        return (self.generated_tokens - self.replies) / self.decode_seconds if self.decode_seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.replies} replies in {self.prompt_seconds + self.decode_seconds:.1f} s: "
            f"{self.prompt_tokens} prompt tokens at {self.prompt_rate:.0f} tokens/s, "
            f"{self.generated_tokens} generated at {self.generated_rate:.1f} tokens/s"
        )


class Stopwatch:
    """Measures one batch: made before ``generate``, ``token`` called for each token, ``stop`` after it."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: float | None = None

    def token(self) -> None:
        """Note that a token came."""
        if self._first is None:
            self._first = time.perf_counter()

    def stop(self, total: Throughput, prompt_tokens: int, generated_tokens: int, replies: int = 1) -> None:
        """Add this batch to ``total``."""
        end = time.perf_counter()
        first = end if self._first is None else self._first
        total.prompt_seconds += first - self._start
        total.decode_seconds += end - first
        total.prompt_tokens += prompt_tokens
        total.generated_tokens += generated_tokens
        total.replies += replies
