"""The HTTP server: waitress, with limits on connections and slow clients, and JSON for broken requests."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher
from waitress.wasyncore import close_all, loop

from paddlesft.serving.errors import ApiError
from paddlesft.serving.front import Front
from paddlesft.serving.listening import address_of, listen
from paddlesft.serving.request_log import RequestRecord, request_id
from paddlesft.serving.settings import ServingSettings

SPARE_THREADS = 8  # for health checks, figures and refusals while every reply and every waiting request has one
_POLITE = 4  # times the largest body is read to its end, so that its sender sees the refusal, not a broken connection


class _BrokenRequest(ErrorTask):
    """Answers what is not HTTP, or too much of it, as every other error is answered."""

    def execute(self) -> None:
        if not hasattr(self.request, "path"):
            self.request.path = "-"  # waitress logs it when the client has gone, and would break down without it
        code = self.request.error.code
        adjustments = self.channel.server.adj
        message, kind = {
            413: (f"The request's body is larger than {adjustments.max_request_body_size} bytes.", "body_too_large"),
            431: (f"First line and headers exceed {adjustments.max_request_header_size} bytes.", "headers_too_large"),
            501: ("Of transfer encodings only chunked is understood.", "transfer_encoding"),
            500: ("Something went wrong in the server.", None),
        }.get(code, ("The request is not valid HTTP.", "bad_http"))
        error = ApiError(code, message, "server_error" if code == 500 else "invalid_request_error", code=kind)
        body = json.dumps(error.body()).encode()
        record = RequestRecord(request_id(None), client=self.channel.addr[0], status=code)
        self.status = f"{code} {self.request.error.reason}"
        self.response_headers += [("Content-Type", "application/json"), ("X-Request-Id", record.id)]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)
        record.write()
        self.channel.server.front.metrics.answered(record)


class _Request(HTTPRequestParser):
    """A request whose length may be a number that Python does not read: waitress would hang up without an answer."""

    def parse_header(self, header_plus: bytes) -> None:
        """Read first line and headers."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:
            raise ParsingError(type(error).__name__) from None


class _Channel(HTTPChannel):
    """A connection whose request must arrive in time, however slowly its bytes drip."""

    parser_class = _Request
    error_task_class = _BrokenRequest
    _began: float | None = None

    def readable(self) -> bool:
        """Tell whether bytes are wanted; waitress asks at least every second."""
        if self.request is None:
            self._began = None
        elif self._began is None:
            self._began = time.monotonic()
        elif time.monotonic() - self._began > self.server.receive_seconds:
            self.will_close = True
        return super().readable()


class _Server(TcpWSGIServer):
    channel_class = _Channel

    def __init__(self, front: Front, settings: ServingSettings, **options: Any) -> None:
        self.front, self.receive_seconds = front, settings.receive_seconds
        super().__init__(front, **options)


class HttpServer:
    """Serves an application on one address, in threads of its own.

    Args:
        front: the application.
        settings: limits.
        host: address to listen on.
        port: its port; 0 takes a free one.
        concurrency: requests that may be inside at the same time, those that wait included.

    Attributes:
        host: as given.
        port: that it listens on.

    Raises:
        UserError: the address cannot be used.
    """

    def __init__(self, front: Front, settings: ServingSettings, host: str, port: int, concurrency: int) -> None:
        listener = listen(host, port)
        self.host, self.port = host, listener.getsockname()[1]
        adjustments = Adjustments(
            sockets=[listener],
            threads=concurrency + SPARE_THREADS,
            connection_limit=settings.max_connections,
            channel_request_lookahead=1,  # so that a client that has gone is noticed while its reply is written
            channel_timeout=int(settings.receive_seconds),
            cleanup_interval=max(1, int(settings.receive_seconds / 2)),
            max_request_header_size=settings.max_header_bytes,
            max_request_body_size=_POLITE * settings.max_body_bytes + 1,
            ident="PaddleSFT",
            log_socket_errors=False,
        )
        logging.getLogger("waitress").setLevel(logging.WARNING)  # below it repeats paths as clients wrote them
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # the engine has its own queue, and says so
        self._threads = ThreadedTaskDispatcher()
        self._threads.set_thread_count(adjustments.threads)
        self._map: dict[int, Any] = {}
        self._server = _Server(
            front,
            settings,
            map=self._map,
            _sock=listener,
            dispatcher=self._threads,
            adj=adjustments,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            bind_socket=False,
        )
        self._ended = False
        self._loop = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> HttpServer:
        """Begin to answer; return the server."""
        self._loop.start()
        return self

    @property
    def url(self) -> str:
        """Where this machine reaches it."""
        return address_of(self.host, self.port)

    def stop(self, seconds: float = 5.0) -> None:
        """Send what has been written already, close all connections and end the threads.

        Args:
            seconds: for clients that read slowly, and then for threads that still answer.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(c.total_outbufs_len for c in list(self._server.active_channels.values())):
            time.sleep(0.02)
        self._ended = True
        self._server.pull_trigger()
        self._loop.join(timeout=seconds)
        self._threads.shutdown(timeout=seconds)
        close_all(self._map, ignore_all=True)  # last, as the others write to the loop's pipe

    def _run(self) -> None:
        while not self._ended:
            loop(timeout=1, use_poll=True, map=self._map, count=1)
