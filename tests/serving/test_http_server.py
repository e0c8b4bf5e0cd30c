"""The HTTP server over sockets, before any model: broken HTTP, slow and idle clients, limits, the end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest

from paddlesft.errors import UserError
from paddlesft.serving.front import Front
from paddlesft.serving.http_server import HttpServer
from paddlesft.serving.settings import ServingSettings

SETTINGS = ServingSettings(receive_seconds=1.5, max_body_bytes=1000, max_header_bytes=6000, max_connections=12)


def slowly(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    for number in range(4):
        time.sleep(0.1)
        yield b"%d\n" % number


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    front = Front(SETTINGS)
    front.serve(slowly)
    server = HttpServer(front, SETTINGS, "127.0.0.1", 0, concurrency=2).start()
    yield server
    server.stop(1)


def send(server: HttpServer, data: bytes) -> bytes:
    """Send bytes and return everything that comes until the server closes the connection."""
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"GARBAGE\r\n\r\n", 400, "The request is not valid HTTP."),
        (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", 400, "The request is not valid HTTP."),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "The request is not valid HTTP."),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400, "The request is not valid HTTP."),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "The request is not valid HTTP."),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "Of transfer encodings only chunked is"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 6000, 431, "First line and headers exceed 6000 bytes."),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n", 413, "The request's body is larger than"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, 413, "The request's body has 1001 bytes"),
    ],
)
def test_broken_http_is_answered_like_every_other_error(
    server: HttpServer, data: bytes, status: int, message: str
) -> None:
    if status == 413 and b"1001" in data:
        data = data.replace(b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nConnection: close\r\n")
    head, _, body = send(server, data).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode(), head
    assert b"Content-Type: application/json" in head and b"X-Request-Id: req-" in head and b"waitress" not in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"].startswith(message)


@pytest.mark.parametrize("data", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nab"])
def test_a_request_that_does_not_come_is_not_waited_for(server: HttpServer, data: bytes) -> None:
    begin = time.monotonic()
    assert send(server, data) == b""
    assert 0.9 < time.monotonic() - begin < 6


def test_dripping_bytes_do_not_hold_a_connection(server: HttpServer) -> None:
    begin = time.monotonic()
    with socket.create_connection((server.host, server.port), timeout=5) as connection, pytest.raises(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nA: ")
        while time.monotonic() - begin < 10:
            connection.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() - begin < 6


def test_more_connections_than_allowed_wait_and_are_served_when_others_have_gone(server: HttpServer) -> None:
    held = [socket.create_connection((server.host, server.port)) for _ in range(SETTINGS.max_connections)]
    threading.Timer(0.3, lambda: [one.close() for one in held]).start()
    assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200


def test_a_reply_is_sent_to_its_end_and_then_no_thread_is_left() -> None:
    before = {thread.name for thread in threading.enumerate()}
    front = Front(SETTINGS)
    front.serve(slowly)
    server = HttpServer(front, SETTINGS, "127.0.0.1", 0, concurrency=2).start()
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(httpx.get(f"{server.url}/x").text))
    reader.start()
    time.sleep(0.15)
    front.drain()
    assert httpx.get(f"{server.url}/x").status_code == 503
    assert front.wait_until_quiet(5)
    server.stop()
    reader.join()
    assert got == ["0\n1\n2\n3\n"]
    assert {thread.name for thread in threading.enumerate()} <= before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_a_port_in_use_and_a_strange_address_are_refused(server: HttpServer) -> None:
    with pytest.raises(UserError, match=rf"Cannot listen on 127.0.0.1 port {server.port}: another program listens"):
        HttpServer(Front(SETTINGS), SETTINGS, "127.0.0.1", server.port, 2)
    with pytest.raises(UserError, match=r"Cannot listen on 203.0.113.7 port 0: .*Choose 127.0.0.1 or an address of"):
        HttpServer(Front(SETTINGS), SETTINGS, "203.0.113.7", 0, 2)
