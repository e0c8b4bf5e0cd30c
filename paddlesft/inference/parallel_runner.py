"""A model that is divided among ranks, driven by the first of them: the others repeat what it does with its batches.

Only the first rank has an engine. Every call of its ``CachedRunner`` objects is told to the other ranks before it is
made, over connections of their own, and they make it too, each on the keys and values of its heads; inside the call the
ranks' layers meet as in training. A connection ends when its process ends: nobody waits for a rank that has gone.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

import numpy as np
import paddle

from paddlesft.errors import PaddleSFTError
from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.step_model import StepModel
from paddlesft.models.steps.inputs import Row

logger = logging.getLogger("paddlesft")

END = "end"


class LostRank(PaddleSFTError):
    """Another rank has ended; nothing can be computed any more."""


class Leader:
    """The first rank's connections to the others.

    All ranks make this object or a ``Follower`` at the same time, after fleet has been initialised.

    Args:
        ranks: how many there are.

    Attributes:
        lost: which rank has gone; None while all are there.
    """

    def __init__(self, ranks: int) -> None:
        self.lost: str | None = None
        self._lock = threading.Lock()
        self._number = 0
        self._dropped: deque[int] = deque()
        self._ended = False
        host = _own_host()
        key = secrets.token_bytes(32)
        with Listener((host, 0), backlog=ranks, authkey=key) as listener:
            paddle.distributed.broadcast_object_list([(listener.address, key)], src=0)
            self._connections: dict[Connection, int] = {}
            for _ in range(ranks - 1):
                connection = listener.accept()
                self._connections[connection] = connection.recv()

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Have a function called, once and in a thread of its own, when a rank has gone before the end."""

        def look() -> None:
            gone = wait(list(self._connections))  # nothing is ever sent here: it is the end of the connection
            if not self._ended:
                self.lost = f"rank {self._connections[gone[0]]} has ended"
                on_loss(self.lost)

        threading.Thread(target=look, name="watch-ranks", daemon=True).start()

    def tell(self, runner: int, call: str, *arguments: Any) -> None:
        """Have the other ranks make a call of a runner.

        Raises:
            LostRank: one of them has gone.
        """
        with self._lock:
            dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
            self._send((runner, call, arguments, dropped))

    def end(self) -> None:
        """Let the other ranks end."""
        with self._lock:
            self._ended = True
            if self.lost is None:
                self._send((0, END, (), []))

    def _send(self, message: tuple[Any, ...]) -> None:
        for connection, rank in self._connections.items():
            try:
                connection.send(message)
            except OSError as error:
                self.lost = f"rank {rank} has ended"
                raise LostRank(f"The model has lost a part: {self.lost}.") from error

    def make_runner(self, model: StepModel) -> LeadingRunner:
        """Return a runner of this rank's part that the other ranks follow."""
        self._number += 1
        return LeadingRunner(model, self, self._number)

    def drop(self, runner: int) -> None:
        """Let the other ranks forget a runner, at the next call of another."""
        self._dropped.append(runner)


class LeadingRunner(CachedRunner):
    """A ``CachedRunner`` whose calls the other ranks repeat.

    Args:
        model: this rank's part.
        leader: reaches the other ranks.
        number: of this runner, the same on all ranks.
    """

    def __init__(self, model: StepModel, leader: Leader, number: int) -> None:
        super().__init__(model)
        self._leader, self._number = leader, number
        weakref.finalize(self, leader.drop, number)

    def begin(self, rows: Sequence[Row], known: Sequence[Sequence[Any]] | None = None) -> None:
        """See ``CachedRunner``; keys and values of earlier prompts would be those of one rank.

        Raises:
            ValueError: some are given.
        """
        if known is not None and any(known):
            raise ValueError("known keys and values belong to one rank only; set prefix_cache_tokens to 0")
        self._leader.tell(self._number, "begin", [Row(list(row.prompt)) for row in rows])
        super().begin(rows)

    def advance(self, most: int | None = None) -> Any:
        """See ``CachedRunner``."""
        self._leader.tell(self._number, "advance", most)
        return super().advance(most)

    def step(self, tokens: np.ndarray) -> Any:
        """See ``CachedRunner``."""
        self._leader.tell(self._number, "step", tokens)
        return super().step(tokens)

    def keep(self, indices: Sequence[int]) -> None:
        """See ``CachedRunner``."""
        self._leader.tell(self._number, "keep", list(indices))
        super().keep(indices)

    def limit(self, most: int | None) -> None:
        """See ``CachedRunner``."""
        self._leader.tell(self._number, "limit", most)
        super().limit(most)

    def join(self, other: CachedRunner) -> None:
        """See ``CachedRunner``."""
        self._leader.tell(self._number, "join", other._number)
        super().join(other)


def follow(model: StepModel) -> None:
    """Repeat what the first rank does until it says that this was all. Every rank but the first calls this.

    Args:
        model: this rank's part.

    Raises:
        LostRank: the first rank has ended without a word.
    """
    told: list[Any] = [None]
    paddle.distributed.broadcast_object_list(told, src=0)
    address, key = told[0]
    runners: dict[int, CachedRunner] = {}
    with Client(tuple(address), authkey=key) as connection:
        connection.send(paddle.distributed.get_rank())
        while True:
            try:
                number, call, arguments, dropped = connection.recv()
            except (EOFError, OSError) as error:
                raise LostRank("The first rank has ended; its log says why.") from error
            for old in dropped:
                runners.pop(old, None)
            if call == END:
                return
            runner = runners[number] if number in runners else runners.setdefault(number, CachedRunner(model))
            if call == "join":
                runner.join(runners[arguments[0]])
            else:
                getattr(runner, call)(*arguments)


def _own_host() -> str:
    """Return the address by which the other ranks reach this one."""
    return os.environ.get("PADDLE_CURRENT_ENDPOINT", "127.0.0.1:0").rpartition(":")[0] or "127.0.0.1"
