"""Figures of the service for Prometheus: requests, queue, cache, tokens, latencies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from paddlesft.inference.engine_requests import Finished, Piece, Ticket, TokenInfo, collected
from paddlesft.serving.request_log import RequestRecord, current

if TYPE_CHECKING:
    from paddlesft.inference.engine_statistics import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)


class Metrics:
    """Counts what happens; has a registry of its own, so that several services fit into one process.

    Args:
        paths: that are counted under their own name; all others are "other", so that nobody can fill the memory by
            asking for ever new ones.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        disable_created_metrics()  # a second line for each figure, which says when it was counted first
        self._paths = frozenset(paths)
        self._registry = CollectorRegistry()
        self._stats: Callable[[], EngineStats] | None = None

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(name, text, labels, registry=self._registry)

        self._requests = counter("paddlesft_requests", "Requests that were answered", ("path", "status"))
        self._rejected = counter("paddlesft_rejected", "Requests that were not let in", ("reason",))
        self._replies = counter("paddlesft_replies", "Replies that ended", ("model", "finish_reason"))
        self._seconds = histogram("paddlesft_request_seconds", "From a request to its last byte", _SECONDS, ("path",))
        self._queue = histogram("paddlesft_queue_seconds", "From a request to its first computation", _SECONDS)
        self._first = histogram("paddlesft_time_to_first_token_seconds", "From a request to its first token", _SECONDS)
        self._between = histogram("paddlesft_inter_token_seconds", "From a token to the next", _TOKEN_SECONDS)
        self._registry.register(self)

    def follow(self, stats: Callable[[], EngineStats]) -> None:
        """Show an engine's figures from now on."""
        self._stats = stats

    def answered(self, record: RequestRecord) -> None:
        """Count a request that was answered."""
        path = record.path if record.path in self._paths else "other"
        self._requests.labels(path, record.status).inc()
        self._seconds.labels(path).observe(record.seconds)
        reason = {401: "api_key", 413: "too_large", 429: "queue_full", 503: "not_ready"}.get(record.status)
        if reason is not None and record.path != "/ready":
            self._rejected.labels(reason).inc()

    def ended(self, model: str, finish_reason: str) -> None:
        """Count a reply that ended."""
        self._replies.labels(model, finish_reason).inc()

    def timed(self, finished: Finished) -> None:
        """Count how long a reply's beginning took."""
        self._queue.observe(finished.queue_seconds)
        if finished.first_token_seconds is not None:
            self._first.observe(finished.first_token_seconds)

    def token_came(self, seconds: float) -> None:
        """Count the time between two tokens of a reply."""
        self._between.observe(seconds)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield the engine's figures; the registry calls this."""
        if self._stats is None:
            return
        stats = self._stats()
        limit = stats.kv_tokens_limit
        gauges = (
            ("active_rows", "Replies that are being written", stats.active),
            ("waiting_requests", "Replies that wait for their turn", stats.waiting),
            ("kv_tokens", "Columns of the cache in use", stats.kv_tokens_used),
            ("kv_tokens_limit", "Columns of the cache allowed; 0 without a limit", 0 if limit is None else limit),
            ("prefix_cache_tokens", "Tokens of earlier prompts and replies that are kept", stats.prefix_cache_tokens),
        )
        counters = (
            ("prompt_tokens", "Tokens of prompts that were run", stats.prompt_tokens),
            ("cached_tokens", "Tokens of prompts that an earlier one had begun with", stats.cached_tokens),
            ("generated_tokens", "Tokens that were generated", stats.generated_tokens),
            ("steps", "Calls of the model for next tokens", stats.steps),
            ("model_failures", "Calls of the model that raised an error", stats.failures),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"paddlesft_{name}", text, value=value)
        for name, text, value in counters:
            yield CounterMetricFamily(f"paddlesft_{name}", text, value=value)


class WatchedTicket:
    """A ticket whose events are counted, and told to the log's line of the request that asked.

    Args:
        ticket: the engine's.
        metrics: count it; None: only the log's line hears of it.
        model: name of the model.
        log_text: whether the line may hold the reply.
    """

    def __init__(self, ticket: Ticket, metrics: Metrics | None, model: str, log_text: bool = False) -> None:
        self._ticket, self._metrics, self._model, self._log_text = ticket, metrics, model, log_text
        self._record = current()
        self._told = False
        if self._record is not None:
            self._record.note(model=model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ticket, name)

    def cancel(self) -> None:
        """As the ticket's."""
        self._tell("cancelled")
        self._ticket.cancel()

    def events(self, poll: float = 0.5) -> Iterator[Piece | Finished | None]:
        """As the ticket's."""
        last: float | None = None
        for event in self._ticket.events(poll):
            if isinstance(event, Piece) and event.tokens and self._metrics is not None:
                now = time.monotonic()
                if last is not None:
                    self._metrics.token_came((now - last) / len(event.tokens))
                last = now
            elif isinstance(event, Finished):
                self._finished(event)
            yield event

    def result(self) -> tuple[Finished, list[TokenInfo]]:
        """As the ticket's."""
        return collected(self.events(poll=60))

    def _finished(self, finished: Finished) -> None:
        self._tell(finished.finish_reason)
        if self._metrics is not None:
            self._metrics.timed(finished)
        if self._record is not None:
            self._record.add(prompt_tokens=finished.prompt_tokens, generated_tokens=finished.generated_tokens)
            if self._log_text:
                self._record.note(reply=self._record.facts.get("reply", "") + finished.text)

    def _tell(self, reason: str) -> None:
        if self._told:
            return
        self._told = True
        if self._metrics is not None:
            self._metrics.ended(self._model, reason)
        if self._record is not None:
            self._record.note(finish_reason=reason)
