"""Notices that a run of several ranks has stopped getting anywhere, and ends it with the ranks that lag behind named.

Every rank marks its progress: an optimizer step, a batch of an evaluation, a checkpoint. A thread sends the marks to
the first rank. When no rank has made any for ``hang_timeout`` seconds, and none prepares data or saves, the first rank
says so: every rank writes the stacks of all its threads into its log and ends.

A thread cannot run while another holds the interpreter for good, in a C extension say: ``faulthandler`` then writes the
stacks and ends the process from outside the interpreter. A process that is alone is not watched: it waits for nobody.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from paddlesft.parallel.lifeline import Lifeline
from paddlesft.parallel.rank_ends import ENDED_BY_ANOTHER, HANGS, LastWords, last_words

TICKS = 20  # looks at the clock in ``hang_timeout``
LONGEST_TICK = 10.0  # seconds
SILENCE = 4  # ticks without a word from a rank after which it counts as stopped
WAITING = ("paddle/distributed/", "paddlesft/parallel/gloo/", "paddlesft/training/ranks.py")


@dataclass
class RankState:
    """What a rank was last heard to do.

    Attributes:
        progress: marks made so far.
        doing: what it has last begun or finished.
        idle: seconds since its last mark.
        exempt: it does something that may take as long as it likes.
        place: function, file and line that its main thread is in.
        waits: its main thread waits for other ranks there.
    """

    progress: int = 0
    doing: str = "starting"
    idle: float = 0.0
    exempt: bool = True
    place: str = ""
    waits: bool = False


class HangWatch:
    """The watch of one rank.

    Args:
        seconds: ``hang_timeout``.
        rank: of this process.
        world_size: number of ranks.
        end: called in a thread with this rank's last words when the run hangs; has to end the process.
    """

    def __init__(self, seconds: float, rank: int, world_size: int, end: Callable[[LastWords], None]) -> None:
        self.seconds, self.rank, self.world_size, self._end = seconds, rank, world_size, end
        self.lifeline: Lifeline | None = None
        self._tick = min(seconds / TICKS, LONGEST_TICK)
        self._own = RankState()
        self._depth = 0
        self._marked = time.monotonic()
        self._main = threading.main_thread().ident
        self._states: dict[int, tuple[RankState, float]] = {}
        self._stopped = threading.Event()

    # ---- what the run says ----

    def mark(self, doing: str) -> None:
        """Progress was made.

        Args:
            doing: what comes next or was done, for the message.
        """
        self._own.progress += 1
        self._own.doing = doing
        self._own.exempt = self._depth == 0
        self._marked = time.monotonic()

    def exempt(self, doing: str) -> None:
        """What begins now may take as long as it likes, until the next mark."""
        self.mark(doing)
        self._own.exempt = True

    @contextlib.contextmanager
    def watching(self, doing: str) -> Iterator[None]:
        """Watch what happens inside."""
        self._depth += 1
        self.mark(doing)
        try:
            yield
        finally:
            self._depth -= 1
            self.mark(f"{doing} is done")

    @property
    def is_exempt(self) -> bool:
        """Whether this rank does something that may take as long as it likes."""
        return self._own.exempt

    # ---- the thread ----

    def start(self) -> None:
        """Start the thread; the lifeline is connected."""
        threading.Thread(target=self._run, daemon=True, name="hang-watch").start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def heard(self, rank: int, message: Mapping[str, Any]) -> None:
        """Take what the lifeline brings: the state of a rank, or that the run hangs."""
        if "hangs" in message:
            words = LastWords(**message["hangs"])
            self._hang(words, last_words(ENDED_BY_ANOTHER, words.text, words.trace, words.culprit))
        else:
            self._states[rank] = RankState(**message["state"]), time.monotonic()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(self._tick):
            now = time.monotonic()
            if now - before > SILENCE * self._tick:  # this process was stopped and goes on: Ctrl-Z, a busy machine
                self._marked += now - before
            before = now
            state = self._state(now)
            self._set_last_resort(state)
            self.lifeline.send({"state": asdict(state)})
            words = self._judge(state, now) if self.rank == 0 else self._judge_the_first(state, now)
            if words is not None:
                if self.rank == 0:
                    self.lifeline.send({"hangs": asdict(words)})
                self._hang(words, words)
                return

    def _state(self, now: float) -> RankState:
        own = self._own
        frame = sys._current_frames().get(self._main)
        place, waits = _place(frame)
        return RankState(own.progress, own.doing, max(0.0, now - self._marked), own.exempt, place, waits)

    def _set_last_resort(self, state: RankState) -> None:
        if state.exempt:
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(self.seconds + SILENCE * self._tick, exit=True, file=sys.stderr)

    def _judge(self, own: RankState, now: float) -> LastWords | None:
        """Decide whether the run hangs, on the first rank, which knows how all are doing."""
        states = {0: own}
        silent = []
        for rank in range(1, self.world_size):
            state, when = self._states.get(rank, (RankState(), now))
            states[rank] = RankState(**{**asdict(state), "idle": state.idle + now - when})
            if now - when > SILENCE * self._tick:
                silent.append(rank)
        if any(state.exempt for state in states.values()) or min(s.idle for s in states.values()) < self.seconds:
            return None
        return hang_words(states, silent, self.seconds)

    def _judge_the_first(self, own: RankState, now: float) -> LastWords | None:
        """Decide whether the first rank itself has stopped and can no longer judge."""
        state, when = self._states.get(0, (RankState(), now))
        silent = now - when > SILENCE * self._tick
        if own.exempt or state.exempt or not silent or min(own.idle, now - when) < self.seconds:
            return None
        return hang_words({0: state, self.rank: own}, [0], self.seconds)

    def _hang(self, words: LastWords, own: LastWords) -> None:
        self._stopped.set()
        sys.stderr.write(f"\n{words.text}\nWhat the threads of this rank are doing:\n")
        sys.stderr.flush()
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._end(own)


def hang_words(states: Mapping[int, RankState], silent: list[int], seconds: float) -> LastWords:
    """Say that a run hangs and which ranks lag behind.

    Args:
        states: what is known of each rank.
        silent: ranks that no longer answer.
        seconds: ``hang_timeout``.
    """
    behind = ranks_behind(states, silent)
    lines = [f"no rank has finished a step, an evaluation batch or a checkpoint for {seconds:g} s (hang_timeout)."]
    if len(behind) < len(states):
        names = ", ".join(map(str, behind))
        lines[0] += f" The others wait for rank{'s' if len(behind) > 1 else ''} {names}:"
    else:
        lines[0] += " No rank lags behind the others:"
    for rank in behind if len(behind) < len(states) else sorted(states):
        state = states[rank]
        silence = ", and no longer answers" if rank in silent else ""
        lines.append(f"  rank {rank}: {state.doing}{silence}; in {state.place or 'an unknown place'}")
    lines.append("Each rank's log has the stacks of all its threads. hang_timeout sets the limit in seconds; 0: none.")
    return last_words(HANGS, "\n".join(lines))


def ranks_behind(states: Mapping[int, RankState], silent: list[int]) -> list[int]:
    """Return the ranks that the others wait for: those that do not answer, else those with the fewest marks, else those
    that are not waiting themselves; all of them where nothing tells them apart."""
    if silent:
        return sorted(silent)
    fewest = min(state.progress for state in states.values())
    behind = [rank for rank, state in states.items() if state.progress == fewest]
    if len(behind) == len(states):
        behind = [rank for rank, state in states.items() if not state.waits] or behind
    return sorted(behind)


def _place(frame: Any) -> tuple[str, bool]:
    """Return where a thread is, and whether it waits for other ranks there."""
    if frame is None:
        return "", False
    code = frame.f_code
    place = f"{code.co_name} ({code.co_filename}:{frame.f_lineno})"
    waits = False
    while frame is not None and not waits:
        waits = any(part in frame.f_code.co_filename for part in WAITING)
        frame = frame.f_back
    return place, waits
