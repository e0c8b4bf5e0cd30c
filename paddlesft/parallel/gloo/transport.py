"""Messages between the ranks: every pair of ranks has a connection in each direction, and arrivals are buffered.

Why gloo's own connections are not used (paddlepaddle 3.3.1, ``ProcessGroupGloo``):

* Every group publishes its addresses under the same keys of the store (no prefix per group in ``connectFullMesh``), so
  that groups which are created at the same time read each other's addresses and hang.
* An operation that waits longer than 30 s fails, and no setting changes that; a rank that compiles, reads data or saves
  a checkpoint takes longer.
* A send returns only when the receiver has come, and its tag is counted per group, which the ranks of a pipeline of
  three or more stages cannot agree on: they dead-lock.
* It names neither the rank that is missing nor the operation it is missing from.

Here a send never waits for its receiver's program: a thread of the receiving process takes each message off its
connection and puts it into the queue of its channel. A receive waits for at most ``limit`` seconds; it fails at once
when the process that it waits for has ended.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING

import numpy as np

from paddlesft.errors import PaddleSFTError

if TYPE_CHECKING:
    from collections.abc import Callable

    from paddle.base.core import TCPStore

HEADER = struct.Struct("!qq32sq")  # group, count of the operation, its name, bytes that follow
GREETING = struct.Struct("!q16s")  # rank of the sender, the receiver's secret
POINT_TO_POINT = "send"


class MissingRank(PaddleSFTError):
    """A rank did not come to an operation that another one is in: it has ended, is stuck or does something else."""


class Transport:
    """Connections of this process with all others.

    Args:
        store: paddle's key-value store that all ranks share; tells the ranks each other's addresses.
        rank: of this process, among all.
        world_size: number of ranks.
        host: name or address of this machine that the other ranks reach it at.
        limit: seconds that a receive waits before it gives up.
    """

    def __init__(self, store: TCPStore, rank: int, world_size: int, host: str, limit: float) -> None:
        self.rank, self.world_size, self.limit = rank, world_size, limit
        self._arrived: dict[tuple[int, int, bool], deque] = defaultdict(deque)
        self._ended: set[int] = set()
        self._news = threading.Condition()
        self._outgoing: dict[int, socket.socket] = {}
        self._connect(store, host)

    def _connect(self, store: TCPStore, host: str) -> None:
        self._secret = secrets.token_bytes(16)
        listener = socket.create_server((host, 0), backlog=self.world_size)
        port = listener.getsockname()[1]
        store.set(f"paddlesft/address/{self.rank}", f"{host}|{port}|{self._secret.hex()}")
        threading.Thread(target=self._accept, args=(listener,), daemon=True, name="ranks-accept").start()
        for peer in range(self.world_size):
            if peer == self.rank:
                continue
            peer_host, peer_port, secret = bytes(store.get(f"paddlesft/address/{peer}")).decode().split("|")
            connection = socket.create_connection((peer_host, int(peer_port)), timeout=min(self.limit, 1800))
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(GREETING.pack(self.rank, bytes.fromhex(secret)))
            self._outgoing[peer] = connection

    def _accept(self, listener: socket.socket) -> None:
        known: set[int] = set()
        while len(known) < self.world_size - 1:
            connection, _ = listener.accept()
            connection.settimeout(10)  # a stranger must not keep the ranks out
            try:
                peer, secret = GREETING.unpack(_read(connection, GREETING.size))
            except (EOFError, OSError):
                connection.close()
                continue
            if not secrets.compare_digest(secret, self._secret):
                connection.close()
                continue
            connection.settimeout(None)
            known.add(peer)
            name = f"ranks-from-{peer}"
            threading.Thread(target=self._take_in, args=(peer, connection), daemon=True, name=name).start()
        listener.close()

    def _take_in(self, peer: int, connection: socket.socket) -> None:
        try:
            while True:
                group, count, name, size = HEADER.unpack(_read(connection, HEADER.size))
                operation = name.rstrip(b"\0").decode()
                payload = _read(connection, size)
                with self._news:
                    self._arrived[group, peer, operation == POINT_TO_POINT].append((operation, count, payload))
                    self._news.notify_all()
        except (EOFError, OSError):
            with self._news:
                self._ended.add(peer)
                self._news.notify_all()

    def send(self, peer: int, group: int, operation: str, count: int, payload: memoryview | bytes) -> None:
        """Send bytes to a rank; returns when they are on the way.

        Args:
            peer: rank among all.
            group: id of the group that the operation belongs to.
            operation: its name, at most 32 bytes; ``POINT_TO_POINT`` is queued apart from the collectives.
            count: how many operations of this kind the group has done.
            payload: what to send.

        Raises:
            MissingRank: the other process has ended.
        """
        connection = self._outgoing[peer]
        try:
            connection.sendall(HEADER.pack(group, count, operation.encode(), len(payload)))
            if len(payload):
                connection.sendall(payload)
        except OSError as error:
            raise MissingRank(f"Rank {self.rank} cannot send to rank {peer}, whose process has ended.") from error

    def receive(self, peer: int, group: int, operation: str, count: int, describe: Callable[[], str]) -> memoryview:
        """Wait for the next message of a rank.

        Args:
            peer: rank among all.
            group: id of the group.
            operation: what this rank is doing; the message has to belong to the same.
            count: as in ``send``.
            describe: gives the words for the operation and its group in an error.

        Returns:
            What was sent.

        Raises:
            MissingRank: nothing came in time, the other process has ended, or it is doing another operation.
        """
        queue = self._arrived[group, peer, operation == POINT_TO_POINT]
        deadline = time.monotonic() + self.limit
        with self._news:
            while not queue:
                if peer in self._ended:
                    raise MissingRank(
                        f"Rank {self.rank} waits in {describe()} for rank {peer}, whose process has ended. Its own log "
                        "says why."
                    )
                left = deadline - time.monotonic()
                if left <= 0:
                    raise MissingRank(
                        f"Rank {self.rank} has waited {self.limit:g} s in {describe()} for rank {peer}, which has not "
                        "come. Its own log shows where it is; PADDLESFT_RANK_TIMEOUT sets the limit in seconds."
                    )
                self._news.wait(left)
            its_operation, its_count, payload = queue.popleft()
        if (its_operation, its_count) != (operation, count):
            raise MissingRank(
                f"Rank {self.rank} is in {describe()}, its number {count} there, but rank {peer} has come to "
                f"{its_operation} number {its_count}: the ranks do not do the same things in the same order."
            )
        return payload

    def close(self) -> None:
        """Tell the others that nothing more will come. What was sent still arrives."""
        for connection in self._outgoing.values():
            with contextlib.suppress(OSError):  # the other side went first
                connection.shutdown(socket.SHUT_WR)
            connection.close()


def _read(connection: socket.socket, size: int) -> memoryview:
    """Read exactly this many bytes.

    Raises:
        EOFError: the connection has ended before.
    """
    data = memoryview(np.empty(size, np.uint8))  # a bytearray would be filled with zeros first
    left = data
    while left:
        taken = connection.recv_into(left)
        if taken == 0:
            raise EOFError
        left = left[taken:]
    return data
