"""One rank of a run, as the others see it: what it does, that it gets nowhere any more, why it has ended."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from paddle.base import core
from paddlenlp.trainer import TrainerCallback

from paddlesft.errors import UserError
from paddlesft.parallel.gloo.groups import TIMEOUT_VARIABLE
from paddlesft.parallel.lifeline import Lifeline, ended_by
from paddlesft.parallel.rank_ends import FAILED, USER_ERROR, LastWords, last_words, leave_last_words
from paddlesft.training.events import Observer
from paddlesft.training.hang_watch import HangWatch
from paddlesft.training.ranks import world_size

GRACE_SECONDS = 5.0  # for a rank to find out for itself that another one has ended
SAVING_SECONDS = 60.0  # for a rank that is writing when another one ends


class RankWatch:
    """Nobody watches a process that is alone."""

    def watched(self, observer: Observer) -> Observer:
        """Return an observer that hands everything on and takes note of the progress."""
        return observer

    def callbacks(self) -> list[TrainerCallback]:
        """Return callbacks for the trainer that take note of the progress."""
        return []

    @contextlib.contextmanager
    def watching(self, doing: str) -> Iterator[None]:
        """Watch what happens inside; outside of it everything may take as long as it likes."""
        yield


@contextlib.contextmanager
def rank_watch(hang_timeout: float) -> Iterator[RankWatch]:
    """Watch this rank and the others until the run is done.

    Args:
        hang_timeout: seconds without progress after which the run is ended; 0: never.

    Returns:
        The watch. An error that leaves the context is told to all ranks, which then end too.
    """
    if world_size() == 1 or not os.environ.get("PADDLE_CURRENT_ENDPOINT"):
        yield RankWatch()
        return
    # The watch decides how long a rank may let the others wait; the CPU backend alone would not know about saving.
    os.environ.setdefault(TIMEOUT_VARIABLE, str(threading.TIMEOUT_MAX))
    watch = _ManyRanks(hang_timeout)
    try:
        yield watch
    except BaseException as error:
        watch.fail(error)
        raise
    watch.done()


class _ManyRanks(RankWatch):
    def __init__(self, hang_timeout: float) -> None:
        rank, host = int(os.environ["PADDLE_TRAINER_ID"]), os.environ["PADDLE_CURRENT_ENDPOINT"].rpartition(":")[0]
        self.watch = HangWatch(hang_timeout or threading.TIMEOUT_MAX, rank, world_size(), _end)
        store = core.create_or_get_global_tcp_store()
        self.lifeline = Lifeline(store, rank, world_size(), host, self._lost, self.watch.heard)
        self.watch.lifeline = self.lifeline
        if hang_timeout:
            self.watch.start()

    def watched(self, observer: Observer) -> Observer:
        return _Watched(observer, self.watch)

    def callbacks(self) -> list[TrainerCallback]:
        return [_Marks(self.watch)]

    def watching(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return self.watch.watching(doing)

    def done(self) -> None:
        self.watch.stop()
        self.lifeline.close()

    def fail(self, error: BaseException) -> None:
        self.watch.stop()
        if isinstance(error, UserError):
            words = last_words(USER_ERROR, str(error))
        else:
            words = last_words(FAILED, f"{type(error).__name__}: {error}", traceback.format_exc())
        first = self.lifeline.say(words)
        leave_last_words(words if first.rank == words.rank else ended_by(first))

    def _lost(self, words: LastWords) -> None:
        """Another rank has ended: end too, but let a checkpoint that is being written be finished."""
        own = ended_by(words)
        leave_last_words(own)
        sys.stderr.write(f"\n{own.text}\n{own.trace}\n")
        sys.stderr.flush()
        deadline = time.monotonic() + GRACE_SECONDS
        longest = time.monotonic() + SAVING_SECONDS
        while time.monotonic() < (longest if self.watch.is_exempt else deadline):
            time.sleep(0.1)
        _end(own)


def _end(words: LastWords) -> None:
    """End this process. Its main thread may be in a collective that nobody will ever answer."""
    leave_last_words(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(UserError.exit_code if words.kind == USER_ERROR else 1)


class _Watched:
    """Hands on what an observer is told."""

    def __init__(self, observer: Observer, watch: HangWatch) -> None:
        self._observer, self._watch = observer, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observer, name)

    def evaluating(self, done: int, batches: int) -> None:
        self._watch.mark(f"evaluation, batch {done} of {batches} done")
        self._observer.evaluating(done, batches)


class _Marks(TrainerCallback):
    """Marks steps, from the first one on: the way to it, and saving, may take as long as they like."""

    def __init__(self, watch: HangWatch) -> None:
        self._watch = watch
        self._training = contextlib.ExitStack()
        self._begun = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._begun:
            self._training.enter_context(self._watch.watching("training"))
            self._begun = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.mark(f"step {state.global_step} of {state.max_steps} done")
        self._if_saving_comes_next(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._if_saving_comes_next(state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            self._watch.exempt(f"saving step {state.global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.mark(f"checkpoint of step {state.global_step} done")

    def _if_saving_comes_next(self, state: Any, control: Any) -> None:
        if control.should_save and not control.should_evaluate:
            self._watch.exempt(f"saving step {state.global_step}")
