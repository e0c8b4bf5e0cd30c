"""The serving engine: one thread owns the model and writes all replies at once, each joining and leaving when it may.

Every turn runs a piece of one waiting prompt, then one token of every reply that is being written (continuous batching,
https://www.usenix.org/conference/osdi22/presentation/yu, with prompts in pieces, https://arxiv.org/abs/2308.16369). A
prompt has a cache of its own until it has been run; then its row joins the others.
"""

from __future__ import annotations

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
from paddlesft.inference.engine_requests import Draining, GenerationRequest, QueueFull, Ticket, check_tokens
from paddlesft.inference.engine_statistics import EngineCounters, EngineLimits, EngineStats
from paddlesft.inference.engine_work import Work
from paddlesft.inference.prefix_cache import PrefixCache
from paddlesft.inference.prompt_pace import MOST, PromptPace
from paddlesft.inference.reply import token_limits
from paddlesft.inference.sampling import choose_each
from paddlesft.inference.step_model import EagerModel, StepModel
from paddlesft.models.steps import step_refusal
from paddlesft.models.steps.inputs import Row

logger = logging.getLogger("paddlesft")

FAILURES = 3  # of the model, one after the other, after which the engine ends
REASONS = ("stop", "length", "cancelled", "timeout")  # why replies end that did not fail
STOPPING = "The server is stopping."
LAST_SECONDS = 5.0  # that a broken model gets to return


class Engine:
    """Writes replies for many requests at once.

    Args:
        model: in memory, bare or with its adapter, or a static graph, or one that holds several adapters.
        limits: how much it takes on; None: ``EngineLimits()``.
        pad_token_id: any valid id; it fills shorter rows and is masked.
        make_runner: makes what holds the cache of a batch.

    Attributes:
        limits: as given.
        failed: why the engine has stopped working; None while it works.

    Raises:
        UserError: the model cannot be computed token by token with replies of different age.
    """

    def __init__(
        self,
        model: paddle.nn.Layer | StepModel,
        limits: EngineLimits | None = None,
        pad_token_id: int = 0,
        make_runner: Callable[[StepModel], CachedRunner] = CachedRunner,
    ) -> None:
        if isinstance(model, paddle.nn.Layer):
            refusal = step_refusal(model)
            if refusal:
                raise UserError(
                    f"This model cannot be served: {refusal}, and replies of different age need that. It runs in "
                    "batches: paddlesft predict. paddlesft models shows the families and what they can do."
                )
            model.eval()
            model = EagerModel(model, pad_token_id)
        self.limits = limits = limits or EngineLimits()
        self.failed: str | None = None
        self._model, self._make_runner, self._device = model, make_runner, paddle.get_device()
        self._batch = make_runner(model)
        self._batch.limit(limits.kv_tokens)
        self._prefixes = PrefixCache(0 if model.inputs.whole_prompts else limits.prefix_cache_tokens)
        self._pace = PromptPace(limits.prefill_tokens)
        self._active: list[Work] = []  # in the order of the batch
        self._joining: tuple[Work, CachedRunner] | None = None
        self._waiting: deque[Work] = deque()
        self._wake = threading.Condition()  # of the three above, and these
        self._draining = self._closing = False
        self._failures = 0
        self._counters = EngineCounters()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def config(self) -> Any:
        """PaddleNLP's config of the model."""
        return self._model.config

    # --- called by any thread ---------------------------------------------------------------------------------------

    def start(self) -> Engine:
        """Begin to work; return the engine."""
        self._thread.start()
        return self

    def submit(self, request: GenerationRequest) -> Ticket:
        """Ask for a reply.

        Raises:
            UserError: the prompt is empty, has tokens that the model lacks, or is none that its family can read; it
                and its reply can never fit; or the options need what is not there.
            QueueFull: too many requests wait.
            Draining: the engine ends.
        """
        limit = token_limits(self._model.config, [request.prompt], request.options)[0]
        check_tokens(request, self._model.config.vocab_size)
        self._model.inputs.check_prompt(request.prompt)
        prefix = self._model.prefixes.get(request.adapter)
        columns = len(request.prompt) + limit + (0 if prefix is None else prefix.shape[2])
        if self.limits.kv_tokens is not None and columns > self.limits.kv_tokens:
            raise UserError(
                f"The prompt has {len(request.prompt)} tokens and its reply may have {limit}; this server has room for "
                f"{self.limits.kv_tokens} together. Shorten the prompt, or ask for fewer tokens."
            )
        work = Work(Ticket(request, self._wake), columns, limit)
        with self._wake:
            self._refuse_when_full()
            self._waiting.append(work)
            self._wake.notify_all()
        return work.ticket

    def refuse_when_full(self) -> None:
        """Refuse what ``submit`` would refuse whatever is asked, before a prompt is made of it.

        Raises:
            QueueFull: too many requests wait.
            Draining: the engine ends.
        """
        with self._wake:
            self._refuse_when_full()

    def _refuse_when_full(self) -> None:
        if self._draining:
            raise Draining(self.failed or STOPPING)
        if self._present() >= self.limits.max_rows + self.limits.max_queue:
            self._counters.add(rejected=1)
            # when a part of those that wait is gone: whoever asks again is not alone
            raise QueueFull(len(self._waiting), self._counters.seconds_for(1 + len(self._waiting) // 4))

    def stats(self) -> EngineStats:
        """Return what the engine is doing, and has done."""
        counts, ended = self._counters.values()
        with self._wake:
            return EngineStats(
                active=len(self._active),
                waiting=len(self._waiting) + (self._joining is not None),
                kv_tokens_used=self._reserved(self._inside()),
                kv_tokens_limit=self.limits.kv_tokens,
                prefix_cache_tokens=self._prefixes.tokens,
                requests=ended,
                **counts,
            )

    def drain(self, seconds: float) -> bool:
        """Take no more requests, let those that are here end, and stop.

        Args:
            seconds: after which the rest is cut off, with an error.

        Returns:
            Whether all of them ended by themselves.
        """
        with self._wake:
            self._draining = True
            complete = self._wake.wait_for(lambda: not self._present(), timeout=seconds)
        self.close()
        return complete and self.failed is None

    def give_up(self, reason: str) -> None:
        """End everything with an error, because the model can never be computed again.

        Args:
            reason: one sentence; becomes ``failed``.
        """
        with self._wake:
            self.failed = self.failed or reason
            self._draining = self._closing = True
            self._wake.notify_all()
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():  # inside a call that waits for what has gone
            self._end_all(reason)

    def close(self) -> None:
        """Stop at once; what is here ends with an error."""
        with self._wake:
            self._draining = self._closing = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(None if self.failed is None else LAST_SECONDS)
        else:
            self._end_all(STOPPING)

    # --- the engine's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            paddle.set_device(self._device)
            while self._has_work():
                try:
                    self._turn()
                except Exception as error:  # of the model: what is in its cache is lost, the engine goes on
                    self._fail(error)
        except BaseException:
            self.failed = "The engine broke down."
            logger.exception(self.failed)
        finally:
            with self._wake:
                self._draining = self._closing = True
            self._end_all(self.failed or STOPPING)

    def _has_work(self) -> bool:
        """Wait for a request; return False at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._present() or self._closing)
            return not self._closing

    def _turn(self) -> None:
        self._drop_unwanted()
        self._run_prompts()
        self._run_replies()

    def _drop_unwanted(self) -> None:
        """End what was cancelled or takes too long."""
        timeout = self.limits.request_timeout
        with self._wake:
            unwanted = [(work, reason) for work in self._waiting if (reason := work.unwanted(timeout))]
            for work, _ in unwanted:
                self._waiting.remove(work)
            if self._joining is not None and (reason := self._joining[0].unwanted(timeout)):
                unwanted.append((self._joining[0], reason))
                self._joining = None
        for work, reason in unwanted:
            self._end(work, reason)
        self._leave({index: reason for index, work in enumerate(self._active) if (reason := work.unwanted(timeout))})

    def _run_prompts(self) -> None:
        """Run pieces of prompts; a prompt that has ended becomes a reply."""
        left = MOST
        while left > 0:
            if self._active:
                left = min(left, self._pace.tokens)
            if self._joining is None and not self._begin_next():
                return
            work, runner = self._joining
            before, began = runner.rows[0].length, time.monotonic()
            try:
                logits = runner.advance(left)
            except PaddleSFTError as error:  # what the family's inputs say of this prompt
                with self._wake:
                    self._joining = None
                self._end(work, str(error))
                continue
            ran = runner.rows[0].length - before
            left -= ran
            self._pace.ran(ran, time.monotonic() - began)
            self._counters.add(prompt_tokens=ran)
            if logits is not None:
                self._join(work, runner, logits)

    def _begin_next(self) -> bool:
        """Make the longest waiting request the one whose prompt runs, if there is room for it."""
        limit = self.limits.kv_tokens
        with self._wake:
            if not self._waiting or len(self._active) >= self.limits.max_rows:
                return False
            if limit is not None and self._reserved([*self._active, self._waiting[0]]) > limit:
                return False
            work, runner = self._waiting.popleft(), self._make_runner(self._model)
            self._joining = (work, runner)
        if limit is not None:
            runner.limit(work.columns)
            self._batch.limit(limit - work.columns)
        work.begin()
        request = work.ticket.request
        known = self._prefixes.find(request.adapter, request.prompt[:-1])  # the last token gives the first logits
        runner.begin([Row(request.prompt, adapter=request.adapter)], [known])
        work.cached_tokens = runner.rows[0].length
        self._counters.add(cached_tokens=work.cached_tokens)
        return True

    def _join(self, work: Work, runner: CachedRunner, logits: Any) -> None:
        """Make a prompt that has been run a row of the batch, and choose its first token."""
        row = len(self._active)
        self._batch.limit(self.limits.kv_tokens)
        self._batch.join(runner)
        with self._wake:
            self._joining = None
            self._active.append(work)
        self._choose([work], logits, row)
        if row < len(self._active):  # it has not ended at once
            self._remember(row)

    def _run_replies(self) -> None:
        """Run one token of every reply."""
        if not self._active:
            return
        logits = self._batch.step(np.array([work.tokens[-1] for work in self._active], dtype=np.int64))
        self._counters.add(steps=1)
        self._choose(self._active, logits)

    def _choose(self, works: list[Work], logits: Any, first: int = 0) -> None:
        """Choose the next token of replies, and let those go that have ended.

        Args:
            works: the replies.
            logits: [b, v], a row for each.
            first: index of the first of them in the batch.
        """
        ended: dict[int, str] = {}
        tokens = choose_each([work.sampler for work in works], logits)
        for index, (work, token) in enumerate(zip(works, tokens)):
            if isinstance(token, PaddleSFTError):
                ended[first + index] = str(token)
                continue
            try:
                work.take(token, logits, index)
            except Exception:  # of its tokenizer
                logger.exception("The text of request %s cannot be made.", work.ticket.request.request_id)
                ended[first + index] = "The reply's text cannot be made."
                continue
            if work.reply.finish_reason is not None:
                ended[first + index] = work.reply.finish_reason
        self._counters.add(generated_tokens=sum(not isinstance(token, PaddleSFTError) for token in tokens))
        self._leave(ended)

    def _leave(self, ended: dict[int, str]) -> None:
        """End replies.

        Args:
            ended: one of ``REASONS``, or what went wrong, by index in the batch.
        """
        if not ended:
            return
        for index, reason in ended.items():
            if reason in REASONS:
                self._remember(index)
        gone = [(self._active[index], reason) for index, reason in ended.items()]
        going = [index for index in range(len(self._active)) if index not in ended]
        self._batch.keep(going)
        with self._wake:
            self._active = [self._active[index] for index in going]
        for work, reason in gone:
            if reason in ("stop", "length"):
                self._failures = 0
            self._end(work, reason)

    def _remember(self, row: int) -> None:
        """Keep what was computed of a row, for texts that begin alike."""
        work, length = self._active[row], self._batch.rows[row].length
        adapter = work.ticket.request.adapter
        self._prefixes.add(adapter, work.tokens[:length], lambda *span: self._batch.keys_and_values(row, *span))

    def _end(self, work: Work, reason: str) -> None:
        """Tell whoever waits for a reply that it has ended: one of ``REASONS``, or what went wrong."""
        if reason in REASONS:
            work.end(reason)
        else:
            logger.warning("Request %s ends with an error: %s", work.ticket.request.request_id, reason)
            work.end("error", reason)
        self._counters.ended(reason if reason in REASONS else "error")
        with self._wake:
            self._wake.notify_all()

    def _fail(self, error: Exception) -> None:
        """Go on after an error of the model, but not for ever; what was in its cache is lost."""
        self._failures += 1
        self._counters.add(failures=1)
        message = f"The model failed: {type(error).__name__}."
        logger.error("The model failed, %d in a row; the replies it was writing end.", self._failures, exc_info=error)
        with self._wake:
            lost = self._inside()
            self._active, self._joining = [], None
            if self._failures >= FAILURES:
                self.failed = f"{message} It failed {FAILURES} times in a row."
                self._draining = self._closing = True
        self._batch = self._make_runner(self._model)
        self._batch.limit(self.limits.kv_tokens)
        self._prefixes.clear()
        for work in lost:
            self._end(work, message)

    def _end_all(self, error: str) -> None:
        """End everything that is here."""
        with self._wake:
            lost = [*self._inside(), *self._waiting]
            self._active, self._joining = [], None
            self._waiting.clear()
        for work in lost:
            self._end(work, error)
        if self.failed is None:
            self._batch.keep([])

    # --- counting ---------------------------------------------------------------------------------------------------

    def _inside(self) -> list[Work]:
        return [*self._active, *([self._joining[0]] if self._joining else [])]

    def _present(self) -> int:
        return len(self._active) + (self._joining is not None) + len(self._waiting)

    @staticmethod
    def _reserved(works: Iterable[Work]) -> int:
        """Columns of the cache that these replies may come to fill: it is as wide as the longest."""
        columns = [work.columns for work in works]
        return len(columns) * max(columns, default=0)
