"""The serving engine: one thread owns the model and writes all replies at once, each joining and leaving when it may.

Every turn runs a piece of one waiting prompt, then one token of every reply that is being written (continuous batching,
https://www.usenix.org/conference/osdi22/presentation/yu, with prompts in pieces, https://arxiv.org/abs/2308.16369). A
prompt has a cache of its own until it has been run; then its row joins the others.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import paddle

from paddlesft.errors import PaddleSFTError, UserError
from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.engine_requests import (
    Draining,
    Finished,
    GenerationRequest,
    Piece,
    QueueFull,
    Ticket,
    TokenInfo,
)
from paddlesft.inference.reply import GrowingReply, token_limits
from paddlesft.inference.sampling import RowSampler, Sampler
from paddlesft.inference.step_model import EagerModel, StepModel
from paddlesft.inference.streaming import TextStream
from paddlesft.models.steps.inputs import Row

logger = logging.getLogger("paddlesft")

ALONE = 512  # tokens of a prompt's piece while no reply waits for its next token


@dataclasses.dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on.

    Attributes:
        max_rows: replies written at the same time.
        max_queue: requests that may wait besides.
        kv_tokens: most columns of the cache, counted as replies times the longest of them, prompt and the reply's most
            tokens together; None: as many as the replies need.
        prefill_tokens: tokens of prompts that run between two tokens of the replies.
        request_timeout: seconds from submission after which a reply ends with what it has; None: never.
    """

    max_rows: int = 8
    max_queue: int = 32
    kv_tokens: int | None = None
    prefill_tokens: int = 64
    request_timeout: float | None = None


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """What the engine is doing, and has done.

    Attributes:
        active: replies being written.
        waiting: requests whose prompts have not been run, the one that is running included.
        kv_tokens_used: columns of the cache that are reserved, see ``EngineLimits.kv_tokens``.
        kv_tokens_limit: the limit; None without one.
        prompt_tokens: that were run since the start.
        generated_tokens: since the start.
        steps: calls of the model for next tokens.
        requests: that have ended, by finish reason.
        rejected: requests that were refused because the queue was full.
    """

    active: int
    waiting: int
    kv_tokens_used: int
    kv_tokens_limit: int | None
    prompt_tokens: int
    generated_tokens: int
    steps: int
    requests: dict[str, int]
    rejected: int


class _Work:
    """A request inside the engine."""

    def __init__(self, ticket: Ticket, columns: int, limit: int) -> None:
        request = ticket.request
        self.ticket, self.columns = ticket, columns
        stop = frozenset(request.stop_token_ids) | frozenset(request.options.stop_token_ids)
        stream = TextStream(request.tokenizer, request.options.stop) if request.tokenizer is not None else None
        self.reply = GrowingReply(0, limit, stop, request.options, stream)
        self.sampler = RowSampler(request.options, request.prompt, stop, request.row)
        self.last_token = 0
        self.text = ""
        self.cached_tokens = 0
        self.begun: float | None = None
        self.first: float | None = None

    def take(self, token: int, info: TokenInfo) -> None:
        """Add a token that was chosen."""
        self.first = self.first or time.monotonic()
        self.last_token = token
        text = self.reply.add(token)
        self.text += text
        self.ticket.put(Piece(text, (info,)))

    def end(self, reason: str, error: str | None = None) -> None:
        """Tell whoever waits that this is all."""
        now, since = time.monotonic(), self.ticket.submitted
        self.ticket.put(
            Finished(
                finish_reason=reason,
                text=self.text,
                prompt_tokens=len(self.ticket.request.prompt),
                cached_tokens=self.cached_tokens,
                generated_tokens=self.reply.num_tokens,
                error=error,
                queue_seconds=(self.begun or now) - since,
                first_token_seconds=None if self.first is None else self.first - since,
                seconds=now - since,
            )
        )


class Engine:
    """Writes replies for many requests at once.

    Args:
        model: in memory, bare or with its adapter, or a static graph, or one that holds several adapters.
        limits: how much it takes on.
        pad_token_id: any valid id; it fills shorter rows and is masked.
        make_runner: makes what holds the cache of a batch.

    Attributes:
        limits: as given.
        failed: why the engine has stopped working; None while it works.
    """

    def __init__(
        self,
        model: paddle.nn.Layer | StepModel,
        limits: EngineLimits = EngineLimits(),
        pad_token_id: int = 0,
        make_runner: Callable[[StepModel], CachedRunner] = CachedRunner,
    ) -> None:
        if isinstance(model, paddle.nn.Layer):
            model.eval()
            model = EagerModel(model, pad_token_id)
        self.limits = limits
        self.failed: str | None = None
        self._model, self._make_runner = model, make_runner
        self._batch = make_runner(model)
        self._active: list[_Work] = []
        self._joining: tuple[_Work, CachedRunner] | None = None
        self._waiting: deque[_Work] = deque()
        self._wake = threading.Condition()
        self._draining = self._closing = False
        self._counts = {"prompt_tokens": 0, "generated_tokens": 0, "steps": 0, "rejected": 0}
        self._ended: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- called by any thread ---------------------------------------------------------------------------------------

    def start(self) -> Engine:
        """Begin to work; return the engine."""
        self._thread.start()
        return self

    def submit(self, request: GenerationRequest) -> Ticket:
        """Ask for a reply.

        Raises:
            UserError: the prompt is empty, or it and its reply can never fit.
            QueueFull: too many requests wait.
            Draining: the engine ends.
        """
        limit = token_limits(self._model.config, [request.prompt], request.options)[0]
        prefix = self._model.prefixes.get(request.adapter)
        columns = len(request.prompt) + limit + (0 if prefix is None else prefix.shape[2])
        if self.limits.kv_tokens is not None and columns > self.limits.kv_tokens:
            raise UserError(
                f"The prompt has {len(request.prompt)} tokens and its reply may have {limit}; this server has room for "
                f"{self.limits.kv_tokens} together. Shorten the prompt, or ask for fewer tokens."
            )
        work = _Work(Ticket(request, self._wake), columns, limit)
        with self._wake:
            if self._draining or self.failed:
                raise Draining(self.failed or "The server is stopping.")
            if self._present() >= self.limits.max_rows + self.limits.max_queue:
                self._counts["rejected"] += 1
                raise QueueFull(len(self._waiting), self._retry_after())
            self._waiting.append(work)
            self._wake.notify_all()
        return work.ticket

    def stats(self) -> EngineStats:
        """Return what the engine is doing, and has done."""
        with self._wake:
            return EngineStats(
                active=len(self._active),
                waiting=len(self._waiting) + (self._joining is not None),
                kv_tokens_used=self._reserved(self._inside()),
                kv_tokens_limit=self.limits.kv_tokens,
                requests=dict(self._ended),
                **self._counts,
            )

    def drain(self, seconds: float) -> bool:
        """Take no more requests, let those that are here end, and stop.

        Args:
            seconds: after which the rest is cancelled.

        Returns:
            Whether all of them ended by themselves.
        """
        with self._wake:
            self._draining = True
            complete = self._wake.wait_for(lambda: not self._present() or self.failed, timeout=seconds)
        self.close()
        return bool(complete)

    def close(self) -> None:
        """Stop at once; what is being written ends with an error."""
        with self._wake:
            self._draining = self._closing = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    # --- the engine's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._present() or self._closing)
                if self._closing:
                    break
            try:
                self._turn()
            except Exception as error:  # of the model: what is in its cache is lost, the engine goes on
                logger.exception("The model failed; the replies it was writing end.")
                self._abandon(f"The model failed: {type(error).__name__}.")
        self._abandon("The server is stopping.")
        with self._wake:
            rest = list(self._waiting)
            self._waiting.clear()
        for work in rest:
            self._end(work, "error", "The server is stopping.")

    def _turn(self) -> None:
        self._drop_unwanted()
        self._run_prompts()
        self._run_replies()

    def _drop_unwanted(self) -> None:
        """End what was cancelled or takes too long."""
        with self._wake:
            unwanted = [work for work in self._waiting if self._unwanted(work)]
            for work in unwanted:
                self._waiting.remove(work)
        if self._joining is not None and self._unwanted(self._joining[0]):
            unwanted.append(self._joining[0])
            self._joining = None
        for work in unwanted:
            self._end(work, self._unwanted(work))
        self._leave({index: reason for index, work in enumerate(self._active) if (reason := self._unwanted(work))})

    def _unwanted(self, work: _Work) -> str:
        """Return "cancelled" or "timeout" for a reply that has to end, else ""."""
        request = work.ticket.request
        timeout = self.limits.request_timeout if request.timeout is None else request.timeout
        if work.ticket.cancelled:
            return "cancelled"
        return "timeout" if timeout is not None and time.monotonic() - work.ticket.submitted > timeout else ""

    def _run_prompts(self) -> None:
        """Run pieces of prompts; a prompt that has ended becomes a reply."""
        left = self.limits.prefill_tokens if self._active else ALONE
        while left > 0:
            if self._joining is None and not self._begin_next():
                return
            work, runner = self._joining
            before = runner.rows[0].length
            logits = runner.advance(left)
            ran = runner.rows[0].length - before
            left -= ran
            self._counts["prompt_tokens"] += ran
            if logits is not None:
                self._joining = None
                self._batch.join(runner)
                with self._wake:
                    self._active.append(work)
                self._choose([work], logits, first=len(self._active) - 1)

    def _begin_next(self) -> bool:
        """Make the longest waiting request the one whose prompt runs, if there is room for it."""
        with self._wake:
            if not self._waiting or len(self._active) >= self.limits.max_rows:
                return False
            limit = self.limits.kv_tokens
            if limit is not None and self._reserved([*self._active, self._waiting[0]]) > limit:
                return False
            work = self._waiting.popleft()
            runner = self._make_runner(self._model)
            self._joining = (work, runner)
        work.begun = time.monotonic()
        runner.begin([Row(work.ticket.request.prompt, adapter=work.ticket.request.adapter)])
        return True

    def _run_replies(self) -> None:
        """Run one token of every reply."""
        if not self._active:
            return
        logits = self._batch.step(np.array([work.last_token for work in self._active], dtype=np.int64))
        self._counts["steps"] += 1
        self._choose(self._active, logits)

    def _choose(self, works: list[_Work], logits: Any, first: int = 0) -> None:
        """Choose the next token of replies, and let those go that have ended.

        Args:
            works: the replies.
            logits: [b, v], a row for each.
            first: index of the first of them in the batch.
        """
        ended: dict[int, str] = {}
        chosen: list[int | PaddleSFTError] = []
        try:
            chosen += Sampler([work.sampler for work in works])(logits).tolist()
        except PaddleSFTError:  # of one row, which must not end the others
            chosen = [self._one_choice(work, logits, index) for index, work in enumerate(works)]
        for index, (work, token) in enumerate(zip(works, chosen)):
            if isinstance(token, PaddleSFTError):
                ended[first + index] = str(token)
                continue
            self._counts["generated_tokens"] += 1
            work.take(token, self._info(work, token, logits, index))
            if work.reply.finish_reason is not None:
                ended[first + index] = work.reply.finish_reason
        self._leave(ended)

    @staticmethod
    def _one_choice(work: _Work, logits: Any, index: int) -> int | PaddleSFTError:
        try:
            return int(Sampler([work.sampler])(logits[index : index + 1])[0])
        except PaddleSFTError as error:
            return error

    @staticmethod
    def _info(work: _Work, token: int, logits: Any, index: int) -> TokenInfo:
        count = work.ticket.request.logprobs
        if count is None:
            return TokenInfo(token)
        row = np.asarray(logits[index], dtype=np.float64)
        row = row - row.max()
        row -= np.log(np.exp(row).sum())
        likely = np.argsort(-row, kind="stable")[:count]
        return TokenInfo(token, float(row[token]), tuple((int(one), float(row[one])) for one in likely))

    def _leave(self, ended: dict[int, str]) -> None:
        """End replies, by index in the batch."""
        if not ended:
            return
        going = [index for index in range(len(self._active)) if index not in ended]
        gone = [(self._active[index], reason) for index, reason in ended.items()]
        with self._wake:
            self._active = [self._active[index] for index in going]
        self._batch.keep(going)
        for work, reason in gone:
            known = reason in ("stop", "length", "cancelled", "timeout")
            self._end(work, reason if known else "error", None if known else reason)

    def _end(self, work: _Work, reason: str, error: str | None = None) -> None:
        work.end(reason, error)
        with self._wake:
            self._ended[reason] = self._ended.get(reason, 0) + 1
            self._wake.notify_all()

    def _abandon(self, error: str) -> None:
        """End everything whose keys and values are lost."""
        with self._wake:
            lost = self._inside()
            self._active, self._joining = [], None
        self._batch = self._make_runner(self._model)
        for work in lost:
            self._end(work, "error", error)

    # --- counting ---------------------------------------------------------------------------------------------------

    def _inside(self) -> list[_Work]:
        return [*self._active, *([self._joining[0]] if self._joining else [])]

    def _present(self) -> int:
        return len(self._active) + (self._joining is not None) + len(self._waiting)

    @staticmethod
    def _reserved(works: Iterable[_Work]) -> int:
        """Columns of the cache that these replies may come to fill: it is as wide as the longest."""
        columns = [work.columns for work in works]
        return len(columns) * max(columns, default=0)

    def _retry_after(self) -> float:
        """Guess when the next request ends, in seconds."""
        return 1.0
