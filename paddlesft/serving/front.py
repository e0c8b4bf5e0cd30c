"""What the HTTP server calls for every request: who it is, whether it may ask, and whether somebody can answer."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from paddlesft.serving.api_keys import check_key
from paddlesft.serving.errors import ApiError
from paddlesft.serving.metrics import CONTENT_TYPE, Metrics
from paddlesft.serving.request_log import RequestRecord, enter, request_id
from paddlesft.serving.settings import ServingSettings

logger = logging.getLogger("paddlesft")

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

WITHOUT_KEY = ("/health", "/ready")
OWN = (*WITHOUT_KEY, "/metrics")
COUNTED = (*OWN, "/v1/chat/completions", "/v1/completions", "/v1/models", "/api/chat")


class Front:
    """The WSGI application around the one that answers.

    It exists before the model is loaded and stays until the last reply has been sent: ``/health``, ``/ready`` and
    ``/metrics`` are its own, everything else goes to the application, or gets 503 where that is not there.

    Args:
        settings: keys and limits.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self.metrics = Metrics(COUNTED)
        self._settings = settings
        self._app: Wsgi | None = None
        self._failed: Callable[[], str | None] = lambda: None
        self._draining: str | None = None
        self._in_flight = 0
        self._quiet = threading.Condition()

    def serve(self, app: Wsgi, failed: Callable[[], str | None] = lambda: None) -> None:
        """Let an application answer from now on.

        Args:
            app: the application.
            failed: returns why the engine behind it does not work any more, None while it works.
        """
        self._app, self._failed = app, failed

    def drain(self) -> None:
        """Let nobody in from now on."""
        self._draining = "The server is stopping."

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self._in_flight

    def wait_until_quiet(self, seconds: float) -> bool:
        """Wait until every request that was let in has been answered; return whether that happened in time."""
        with self._quiet:
            return self._quiet.wait_for(lambda: self._in_flight == 0, timeout=seconds)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        record = RequestRecord(
            id=request_id(environ.get("HTTP_X_REQUEST_ID")),
            method=environ["REQUEST_METHOD"],
            path=environ.get("PATH_INFO") or "/",
            client=environ.get("REMOTE_ADDR") or "-",
        )
        environ["paddlesft.request_id"] = record.id
        enter(record)
        with self._quiet:
            self._in_flight += 1

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            record.status = int(status[:3])
            return start_response(status, [*headers, ("X-Request-Id", record.id), *_NO_SNIFFING], exc_info)

        try:
            body = self._answer(environ, start, record)
        except ApiError as error:
            body = _error(error, start, record)
        except Exception:
            logger.exception("Request %s failed.", record.id)
            body = _error(ApiError(500, "Something went wrong in the server.", "server_error"), start, record)
        return _Answer(body, lambda: self._ended(record))

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any], record: RequestRecord) -> Iterable[bytes]:
        if record.path not in WITHOUT_KEY:
            check_key(self._settings.api_keys, environ.get("HTTP_AUTHORIZATION"))
        if record.path in OWN:
            return self._own(record, start)
        self._check_body(environ)
        if self._settings.log_prompts:
            _log_body(environ, record)
        why = self._not_ready()
        if why is not None:
            raise ApiError(503, why, "server_error", code="not_ready", headers={"Retry-After": "5"})
        return self._app(environ, start)

    def _not_ready(self) -> str | None:
        if self._draining is not None:
            return self._draining
        if self._app is None:
            return "The model is being loaded."
        return "The model has stopped working." if self._failed() else None

    def _own(self, record: RequestRecord, start: Callable[..., Any]) -> Iterable[bytes]:
        if record.method not in ("GET", "HEAD"):
            raise ApiError(
                405, f"{record.path} takes GET only.", code="method_not_allowed", headers={"Allow": "GET, HEAD"}
            )
        if record.path == "/metrics":
            status, kind, body = "200 OK", CONTENT_TYPE, self.metrics.text()
        elif record.path == "/health":
            failed = self._failed()
            status, kind, body = _state("failed" if failed else "ok", not failed)
        else:
            why = self._not_ready()
            status, kind, body = _state("ready" if why is None else why, why is None)
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
        return [b"" if record.method == "HEAD" else body]

    def _check_body(self, environ: dict[str, Any]) -> None:
        length, most = environ.get("CONTENT_LENGTH") or "0", self._settings.max_body_bytes
        if not length.isascii() or not length.isdigit() or int(length) > most:
            raise ApiError(
                413, f"The request's body has {length[:20]} bytes; at most {most} are taken.", code="body_too_large"
            )

    def _ended(self, record: RequestRecord) -> None:
        enter(None)
        self.metrics.answered(record)
        if record.path not in WITHOUT_KEY:  # probes come every few seconds; the figures count them
            record.write()
        with self._quiet:
            self._in_flight -= 1
            self._quiet.notify_all()


_NO_SNIFFING = (("X-Content-Type-Options", "nosniff"),)


class _Answer:
    """The body of an answer, which tells when it has been sent or given up."""

    def __init__(self, body: Iterable[bytes], ended: Callable[[], None]) -> None:
        self._body, self._ended = body, ended
        self._iterator = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self._iterator

    def close(self) -> None:
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            ended, self._ended = self._ended, lambda: None
            ended()


def _error(error: ApiError, start: Callable[..., Any], record: RequestRecord) -> Iterable[bytes]:
    body = json.dumps(error.body(record.path)).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *error.headers.items()]
    start(f"{error.status} {_REASONS.get(error.status, 'Error')}", headers)
    return [b"" if record.method == "HEAD" else body]


_REASONS = {
    401: "Unauthorized",
    405: "Method Not Allowed",
    413: "Content Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


def _state(text: str, good: bool) -> tuple[str, str, bytes]:
    body = {"status": text} if good else {"status": text, **ApiError(503, text, "server_error").body()}
    return ("200 OK" if good else "503 Service Unavailable"), "application/json", json.dumps(body).encode()


def _log_body(environ: dict[str, Any], record: RequestRecord) -> None:
    """Put the request's text into its line; the application reads it again."""
    stream = environ["wsgi.input"]
    body = stream.read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    record.note(request=body.decode("utf-8", "replace"))
