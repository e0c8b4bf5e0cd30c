"""A connection from every rank to the first one, over which the ranks learn at once that one of them has ended.

Paddle's launcher stops the ranks of the machine on which one has failed. Those of other machines go on waiting in their
collectives; NCCL ends them after half an hour, with an error that names nobody. Here a rank that fails sends its last
words (``rank_ends``), the connection of one that is killed breaks, and the first rank tells all others who it was. The
same connections carry what ``training.hang_watch`` has to know about the other ranks.

Messages are lines of JSON. Connections break within about ``UNREACHABLE_SECONDS`` when a machine loses its power.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from paddlesft.parallel.rank_ends import (
    ENDED_BY_ANOTHER,
    FAILED,
    USER_ERROR,
    LastWords,
    RankEnd,
    first_failure,
    last_words,
)

KEY = "paddlesft/lifeline"
UNREACHABLE_SECONDS = 60
HELLO_SECONDS = 10  # a stranger must not keep the ranks out
_numbers = itertools.count()  # of the lifelines in this process; the ranks make theirs in the same order
OTHERS_SECONDS = 1.0  # time for the rank that began it to be heard behind those that followed


class Store(Protocol):
    """Paddle's key-value store that all ranks share."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...


class Lifeline:
    """The connections of this rank.

    Args:
        store: tells the ranks where the first one listens.
        rank: of this process, among all.
        world_size: number of ranks.
        host: address of this machine that the other ranks reach it at.
        on_loss: called once, in a thread of its own, with the last words of the rank that has ended.
        on_message: called in a thread with (rank, message) for every message sent by ``send``.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        host: str,
        on_loss: Callable[[LastWords], None],
        on_message: Callable[[int, Mapping[str, Any]], None],
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._on_loss, self._on_message = on_loss, on_message
        self._peers: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._finished: set[int] = set()
        self._ends: list[RankEnd] = []
        self._closed = False
        key = f"{KEY}/{next(_numbers)}"
        if rank == 0:
            secret = secrets.token_hex(16)
            listener = socket.create_server((host, 0), backlog=world_size)
            store.set(key, f"{host}|{listener.getsockname()[1]}|{secret}")
            self._start(self._accept, listener, secret)
        else:
            address, port, secret = bytes(store.get(key)).decode().split("|")
            connection = socket.create_connection((address, int(port)), timeout=UNREACHABLE_SECONDS)
            self._adopt(0, connection)
            self._write(0, {"hello": rank, "secret": secret})
            self._start(self._listen, 0, connection, connection.makefile("rb"))

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message to the first rank; the first rank sends it to all others."""
        for peer in list(self._peers):
            self._write(peer, {"message": dict(message)})

    def say(self, words: LastWords) -> LastWords:
        """Tell the others that this rank ends, and why.

        Returns:
            The last words of the rank that failed first, as far as it is known: these, or those of another rank.
        """
        self._closed = True
        end = RankEnd(self.rank, None, words.time, words)
        with self._lock:
            self._ends.append(end)
        if self.rank > 0:
            self._write(0, {"words": asdict(words)})
        if end.is_consequence or self.rank == 0:
            time.sleep(OTHERS_SECONDS)
        if self.rank > 0 and end.is_consequence:
            time.sleep(OTHERS_SECONDS)  # the first rank, which has listened as long, tells what it has heard
        return self._tell_first()

    def close(self) -> None:
        """Tell the others that this rank has done its share; what happens to them is no longer its business."""
        self._closed = True
        for peer, connection in list(self._peers.items()):
            self._write(peer, {"done": True})
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)

    # ---- connections ----

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True, name=f"lifeline-{target.__name__}").start()

    def _adopt(self, peer: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREACHABLE_SECONDS * 1000),
        ):
            connection.setsockopt(level, option, value)
        self._peers[peer] = connection

    def _accept(self, listener: socket.socket, secret: str) -> None:
        while len(self._peers) < self.world_size - 1:
            connection, _ = listener.accept()
            connection.settimeout(HELLO_SECONDS)
            lines = connection.makefile("rb")
            try:
                hello = json.loads(lines.readline(1000))
                if not secrets.compare_digest(str(hello["secret"]), secret):
                    raise ValueError("a stranger")
                peer = int(hello["hello"])
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()
                continue
            self._adopt(peer, connection)
            self._start(self._listen, peer, connection, lines)
        listener.close()

    def _listen(self, peer: int, connection: socket.socket, lines: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in lines:
                content = json.loads(line)
                if "message" in content:
                    self._on_message(peer, content["message"])
                elif "words" in content:
                    words = LastWords(**content["words"])
                    self._note(RankEnd(words.rank, None, words.time, words))
                elif "done" in content:
                    self._finished.add(peer)
        if peer not in self._finished:
            self._note(RankEnd(peer, -1, time.time()))

    def _write(self, peer: int, content: Mapping[str, Any]) -> None:
        # the other side may have gone: then reading has said so, or will
        with self._lock, contextlib.suppress(OSError):
            self._peers[peer].sendall(json.dumps(content).encode() + b"\n")

    # ---- ends ----

    def _note(self, end: RankEnd) -> None:
        with self._lock:
            if any(known.rank == end.rank for known in self._ends):
                return
            self._ends.append(end)
            first = len(self._ends) == 1
        if first and not self._closed:
            time.sleep(OTHERS_SECONDS if self.rank == 0 else 0)
            self._on_loss(self._tell_first())

    def _tell_first(self) -> LastWords:
        with self._lock:
            words = _words_of(first_failure(self._ends))
        if self.rank == 0:
            for peer in list(self._peers):
                self._write(peer, {"words": asdict(words)})
        return words


def _words_of(end: RankEnd) -> LastWords:
    if end.words is not None:
        return end.words
    text = "its process has ended without a word, as one does that is killed (kill -9, or memory that ran out)"
    return LastWords(end.rank, FAILED, text, time=end.time)


def ended_by(words: LastWords) -> LastWords:
    """Make the last words of this rank out of those of the rank that ended it."""
    if words.kind in (ENDED_BY_ANOTHER, USER_ERROR):
        return last_words(words.kind, words.text, words.trace, words.culprit)
    machine = f" on {words.host}" if words.host else ""
    its_log = f"\nIts log{machine}: {words.log}" if words.log else ""
    text = f"rank {words.rank}{machine} failed first: {words.text}"
    return last_words(ENDED_BY_ANOTHER, text, f"{words.trace.rstrip()}{its_log}".strip(), words.rank)
