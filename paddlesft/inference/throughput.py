"""How fast replies were generated: prompts and replies counted apart, because they cost differently; and how long each
request took.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 99)
REQUESTS_FOR_PERCENTILES = 10  # of fewer, the fastest and the slowest say more


@dataclasses.dataclass
class Throughput:
    """Counts and seconds of generation.

    Attributes:
        replies: number of replies.
        prompt_tokens: tokens of their prompts.
        generated_tokens: tokens generated, stop tokens included.
        prompt_seconds: time until the first token of each batch.
        decode_seconds: time from the first token of each batch to its last.
        first_token_seconds: for each request, from the start of its batch to its first token.
        reply_seconds: for each request, from the start of its batch to its own last token.
    """

    replies: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: list[float] = dataclasses.field(default_factory=list)
    reply_seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of generation."""
        return self.prompt_seconds + self.decode_seconds

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generated_rate(self) -> float:
        """Generated tokens per second; the first token of a reply comes from its prompt and is not counted."""
        return (self.generated_tokens - self.replies) / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of the whole time: what PaddleNLP's predictor calls IPS."""
        return self.generated_tokens / self.seconds if self.seconds else 0.0

    @property
    def requests_per_second(self) -> float:
        """Replies per second of the whole time: what PaddleNLP's predictor calls QPS."""
        return self.replies / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.replies} replies in {self.seconds:.1f} s: "
            f"{self.prompt_tokens} prompt tokens at {self.prompt_rate:.0f} tokens/s, "
            f"{self.generated_tokens} generated at {self.generated_rate:.1f} tokens/s"
        )

    def latency(self) -> str:
        """Return a line about how long requests took; "" without any."""
        if not self.reply_seconds:
            return ""
        return (
            f"Seconds from a request to its first token: {_spread(self.first_token_seconds)}; "
            f"to its last: {_spread(self.reply_seconds)}"
        )

    def facts(self) -> dict[str, Any]:
        """Return counts, seconds, rates and percentiles of latency as JSON values."""
        return {
            "replies": self.replies,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "prompt_seconds": self.prompt_seconds,
            "decode_seconds": self.decode_seconds,
            "prompt_tokens_per_second": self.prompt_rate,
            "generated_tokens_per_second": self.generated_rate,
            "ips": self.tokens_per_second,
            "qps": self.requests_per_second,
            "seconds_to_first_token": _percentiles(self.first_token_seconds),
            "seconds_to_last_token": _percentiles(self.reply_seconds),
        }


class Stopwatch:
    """Measures one batch: made before ``generate``, ``token`` called for each token, ``stop`` after it."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}

    def token(self, row: int) -> None:
        """Note that a token of a row came."""
        now = time.perf_counter() - self._start
        self._first.setdefault(row, now)
        self._last[row] = now

    def stop(self, total: Throughput, prompt_tokens: int, generated_tokens: int, replies: int = 1) -> None:
        """Add this batch to ``total``."""
        seconds = time.perf_counter() - self._start
        first = min(self._first.values(), default=seconds)
        total.prompt_seconds += first
        total.decode_seconds += seconds - first
        total.prompt_tokens += prompt_tokens
        total.generated_tokens += generated_tokens
        total.replies += replies
        total.first_token_seconds += self._first.values()
        total.reply_seconds += self._last.values()


def _percentiles(seconds: list[float]) -> dict[str, float | None]:
    """Return percentiles, linear between neighbours; None without requests."""
    return {f"p{p}": float(np.percentile(seconds, p)) if seconds else None for p in PERCENTILES}


def _spread(seconds: list[float]) -> str:
    if len(seconds) < REQUESTS_FOR_PERCENTILES:
        low, high = f"{min(seconds):.2f}", f"{max(seconds):.2f}"
        return low if low == high else f"{low} to {high}"
    return ", ".join(f"{name} {value:.2f}" for name, value in _percentiles(seconds).items())
