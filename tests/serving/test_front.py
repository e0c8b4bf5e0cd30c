"""What every request meets first, without a network: keys, limits, ids, states, and what is said when code fails."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable
from typing import Any

import pytest

from paddlesft.serving.errors import ApiError
from paddlesft.serving.front import Front
from paddlesft.serving.settings import ServingSettings


class Answer:
    def __init__(self, front: Front, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()},
        }

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            self.status, self.headers = int(status[:3]), dict(headers)

        self.chunks = front(environ, start)
        self.body = b"".join(self.chunks)

    def close(self) -> Answer:
        self.chunks.close()
        return self

    @property
    def error(self) -> dict[str, Any]:
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


def ask(front: Front, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
    return Answer(front, method, path, body, headers).close()


def echo(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    start("200 OK", [])
    return [environ["wsgi.input"].read()]


def test_before_the_model_is_there_it_is_alive_and_not_ready() -> None:
    front = Front(ServingSettings())
    assert ask(front, "/health").status == 200
    assert ask(front, "/ready").status == 503
    refused = ask(front, "/v1/models")
    assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
    assert refused.error["message"] == "The model is being loaded."
    front.serve(echo)
    assert json.loads(ask(front, "/ready").body) == {"status": "ready"}
    assert ask(front, "/v1/x", "POST", b"body").body == b"body"


def test_a_broken_engine_is_neither_alive_nor_ready_and_keeps_its_reason_to_itself() -> None:
    front = Front(ServingSettings())
    front.serve(echo, lambda: "/secret/path broke")
    for path in ("/health", "/ready", "/v1/models"):
        answer = ask(front, path)
        assert answer.status == 503 and b"secret" not in answer.body and answer.error["type"] == "server_error"


def test_nobody_gets_in_while_it_stops_and_it_waits_for_those_inside() -> None:
    front = Front(ServingSettings())
    front.serve(echo)
    inside = Answer(front, "POST", "/x", b"1", {})
    front.drain()
    assert ask(front, "/x").error["message"] == "The server is stopping."
    assert ask(front, "/health").status == 200 and ask(front, "/ready").status == 503
    assert not front.wait_until_quiet(0.01)
    inside.close()
    inside.close()  # waitress may do it again
    assert front.wait_until_quiet(0.01)


def test_keys_are_asked_for_everywhere_but_for_health() -> None:
    front = Front(ServingSettings(api_keys=("k",)))
    front.serve(echo)
    for path in ("/metrics", "/v1/models", "/nowhere"):
        refused = ask(front, path)
        assert refused.status == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.error["code"] == "invalid_api_key"
        assert ask(front, path, authorization="Bearer k").status == 200
    assert ask(front, "/health").status == ask(front, "/ready").status == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_own_paths_are_read_only(path: str) -> None:
    front = Front(ServingSettings())
    front.serve(echo)
    refused = ask(front, path, "POST")
    assert refused.status == 405 and refused.headers["Allow"] == "GET, HEAD"
    assert refused.error["message"] == f"{path} takes GET only."
    head = ask(front, path, "HEAD")
    assert head.status == 200 and head.body == b"" and int(head.headers["Content-Length"]) > 10


def test_a_body_that_is_too_large_is_refused() -> None:
    front = Front(ServingSettings(max_body_bytes=10))
    front.serve(echo)
    assert ask(front, "/x", "POST", b"1" * 10).status == 200
    refused = ask(front, "/x", "POST", b"1" * 11)
    assert refused.status == 413
    assert refused.error["message"] == "The request's body has 11 bytes; at most 10 are taken."


def test_an_error_of_the_code_is_answered_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    front = Front(ServingSettings())

    def broken(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        raise RuntimeError("/etc/secret")

    front.serve(broken)
    answer = ask(front, "/x")
    assert answer.status == 500 and b"secret" not in answer.body
    assert answer.error["message"] == "Something went wrong in the server."
    assert "/etc/secret" in caplog.text  # the server's own log says it

    def refusing(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        raise ApiError(429, "full", headers={"Retry-After": "1"})

    front.serve(refusing)
    assert ask(front, "/x").headers["Retry-After"] == "1"


@pytest.mark.parametrize("log_prompts", [False, True])
def test_a_line_for_each_request_with_texts_only_when_asked(
    log_prompts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    front = Front(ServingSettings(log_prompts=log_prompts))
    front.serve(echo)
    with caplog.at_level(logging.INFO, logger="paddlesft.requests"):
        answer = ask(front, "/v1/x", "POST", "geheim é".encode(), x_request_id="mine-1", authorization="Bearer k")
    assert answer.body == "geheim é".encode()
    assert answer.headers["X-Request-Id"] == "mine-1" and answer.headers["X-Content-Type-Options"] == "nosniff"
    (line,) = [json.loads(record.message) for record in caplog.records if record.name == "paddlesft.requests"]
    assert (line["id"], line["method"], line["path"], line["status"]) == ("mine-1", "POST", "/v1/x", 200)
    assert line.get("request") == ("geheim é" if log_prompts else None)
    assert "Bearer" not in caplog.text
