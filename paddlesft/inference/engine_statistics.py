"""What the serving engine takes on, and what it counts."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter, deque

from paddlesft.errors import UserError

ENDS = 32  # of requests, from which the rate is taken, if they are
RECENT = 120.0  # seconds old at most


@dataclasses.dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on.

    Attributes:
        max_rows: replies written at the same time.
        max_queue: requests that may wait besides.
        kv_tokens: most columns of the cache, counted as replies times the longest of them, prompt and the reply's most
            tokens together; None: as many as the replies need.
        prefill_tokens: tokens of prompts that run between two tokens of the replies; None: as many as take a quarter of
            a second, 16 to 512.
        request_timeout: seconds from submission after which a reply ends with what it has; None: never.
        prefix_cache_tokens: tokens of earlier prompts and replies whose keys and values are kept, in case another
            prompt begins with them; 0: none. They are not part of ``kv_tokens``.

    Raises:
        UserError: values out of range; all of them are named at once.
    """

    max_rows: int = 8
    max_queue: int = 32
    kv_tokens: int | None = None
    prefill_tokens: int | None = None
    request_timeout: float | None = None
    prefix_cache_tokens: int = 4096

    def __post_init__(self) -> None:
        problems = []
        for name, least in (
            ("max_rows", 1), ("max_queue", 0), ("kv_tokens", 2), ("prefill_tokens", 1), ("prefix_cache_tokens", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            unset = name in ("kv_tokens", "prefill_tokens")
            if not (unset and value is None) and (type(value) is not int or value < least):
                allowed = "null or a whole number" if unset else "a whole number"
                problems.append(f"{name} is {value!r}; allowed: {allowed} from {least}.")
        seconds = self.request_timeout
        if seconds is not None and (type(seconds) not in (int, float) or not 0 < seconds < float("inf")):
            problems.append(f"request_timeout is {seconds!r}; allowed: null or a number of seconds above 0.")
        if problems:
            raise UserError("The engine's limits are wrong:\n" + "\n".join(f"  - {text}" for text in problems))


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """What the engine is doing, and has done.

    Attributes:
        active: replies being written.
        waiting: requests whose prompts have not been run, the one that is running included.
        kv_tokens_used: columns of the cache that are reserved, see ``EngineLimits.kv_tokens``.
        kv_tokens_limit: the limit; None without one.
        prompt_tokens: that were run since the start.
        cached_tokens: of prompts, that did not have to be run because an earlier one began with them.
        generated_tokens: since the start.
        steps: calls of the model for next tokens.
        requests: that have ended, by finish reason.
        rejected: requests that were refused because the queue was full.
        failures: calls of the model that raised an error.
        prefix_cache_tokens: whose keys and values are kept.
    """

    active: int
    waiting: int
    kv_tokens_used: int
    kv_tokens_limit: int | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    steps: int
    requests: dict[str, int]
    rejected: int
    failures: int
    prefix_cache_tokens: int


class EngineCounters:
    """Counts what has happened; any thread may add and read."""

    NAMES = ("prompt_tokens", "cached_tokens", "generated_tokens", "steps", "rejected", "failures")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(self.NAMES, 0)
        self._ended: Counter[str] = Counter()
        self._ends: deque[float] = deque(maxlen=ENDS)

    def add(self, **counts: int) -> None:
        """Add to counters, by name."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def ended(self, reason: str) -> None:
        """Count a request that has ended."""
        with self._lock:
            self._ended[reason] += 1
            self._ends.append(time.monotonic())

    def values(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the counters, and the requests that ended by reason."""
        with self._lock:
            return dict(self._counts), dict(self._ended)

    def seconds_for(self, requests: int) -> float:
        """Guess how long it takes until so many more requests have ended, from 1 to 60 seconds."""
        now = time.monotonic()
        with self._lock:
            recent = [end for end in self._ends if now - end < RECENT]
        each = (now - recent[0]) / len(recent) if recent else 1.0
        return min(max(requests * each, 1.0), 60.0)
