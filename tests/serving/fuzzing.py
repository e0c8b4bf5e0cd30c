"""Requests that are nearly right, and bytes that are nearly HTTP: made by hypothesis, sent over sockets, judged."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

HTTP_ERRORS_OF_SERVERS = {501}  # a transfer encoding that is not understood

CHAT = {
    "model": "tiny",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 你好 😀"}],
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "n": 1,
    "seed": 1,
    "stop": ["x"],
    "stream": False,
    "logprobs": True,
    "top_logprobs": 2,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1.0},
    "response_format": {"type": "text"},
    "user": "me",
}
COMPLETION = {
    "model": "tiny", "prompt": "Once upon", "max_tokens": 3, "temperature": 0, "n": 1, "echo": False, "stream": False,
    "stop": "x", "seed": 2, "logprobs": 1,
}  # fmt: skip
API_CHAT = {
    "context": "Hello", "history": ["Hi", "Hello!"], "top_k": 1, "top_p": 0.7, "temperature": 0.95,
    "repetition_penalty": 1.0, "max_length": 3, "min_length": 1, "src_length": 64, "extra_info": {}, "stream": False,
}  # fmt: skip
BODIES = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION, "/api/chat": API_CHAT}
PATHS = [*BODIES, "/v1/models", "/v1/models/tiny", "/health", "/ready", "/metrics"]
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"]


@dataclass(frozen=True)
class Sent:
    """One request, complete but not always sensible."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def bytes(self) -> bytes:
        """Return it as it goes over the wire."""
        headers = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(self.body)), **self.headers}
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


class Raw(str):
    """Text that stands in JSON as it is."""


def _encode(value: Any) -> str:
    """Write JSON, with what Python's writer would refuse or mend."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(k))}:{_encode(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_encode, value)) + "]"
    return json.dumps(value)


_NASTY = st.sampled_from(
    [
        *map(Raw, ("NaN", "-Infinity", "1e999", "-0.0", "1" + "0" * 400, "9" * 5000, "1e-400", "0x10", "tru", "'a'")),
        *map(Raw, (r'"\ud800"', r'"\udc00x"', r'"\u0000"', '"' + "a" * 5000 + '"', "[" * 5000, "[" * 400 + "]" * 400)),
        *map(Raw, ('{"a":' * 300 + "1" + "}" * 300, '{"role":"user","role":"x"}', "", " ", "nul")),
        "", " ", "\x00", "\x1b[31m", "<|im_end|>", "{{7*7}}", "../../etc/passwd", "%s%n", "\u202e", "𝕏" * 50,
        0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 0.5, -0.1, 1e308, True, False, None, [], {}, [[]], [None], [{}],
        [""], {"": None}, {"type": "json_object"}, {"type": "function"}, [1, "a", None], [10**6], [-1],
    ]
)  # fmt: skip
VALUES = st.one_of(
    _NASTY,
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=12,
    ),
)
_MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "developer", "function", "bot"]) | VALUES,
        "content": st.sampled_from(["Hi", [{"type": "text", "text": "Hi"}], [{"type": "image_url"}], None]) | VALUES,
        "tool_calls": VALUES,
        "name": VALUES,
        "tool_call_id": VALUES,
        "utterance": VALUES,
    },
)
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_SPECIAL = {
    "messages": st.lists(_MESSAGE, max_size=5),
    "history": st.lists(_MESSAGE | st.text(max_size=5), max_size=5) | st.text(max_size=30).map(json.dumps),
    "prompt": st.sampled_from([["a", "b"], [1, 2, 3], [[1, 2], [3]], "", [], [[]]]),
    "tools": st.sampled_from([[_TOOL], [_TOOL, _TOOL]]) | st.lists(VALUES, max_size=2),
    "stream": st.booleans(),
    "stream_options": st.sampled_from([{"include_usage": True}, {"include_usage": 1}, {"x": 1}]),
    "stop": st.lists(st.text(max_size=5), max_size=6),
    "logit_bias": st.dictionaries(st.sampled_from(["1", "-1", "99999999", "a", "1e3"]), VALUES, max_size=3),
    "n": st.integers(-1, 4),
    "max_tokens": st.integers(-1, 5),
    "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "function", "function": {"name": "f"}}]),
}
_NEW_KEYS = [
    *_SPECIAL,
    "max_completion_tokens",
    "min_tokens",
    "best_of",
    "suffix",
    "functions",
    "audio",
    "__class__",
    "",
]


@st.composite
def bodies(draw: Any, path: str) -> bytes:
    """A valid body with a few keys replaced, left out or added, sometimes damaged as text."""
    body: Any = dict(BODIES[path])
    if draw(st.booleans()):
        body["stream"] = True
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from([*body, *_NEW_KEYS]) | st.text(max_size=8))
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove"]))
        if change == "remove":
            body.pop(key, None)
        else:
            body[key] = draw(_SPECIAL[key] | VALUES if key in _SPECIAL else VALUES)
    text = _encode(body if draw(st.integers(0, 15)) else draw(VALUES))
    data = text.encode("utf-8", "surrogatepass")
    damage = draw(st.sampled_from([*["none"] * 12, "cut", "bytes", "bom", "utf16", "twice", "flip"]))
    if damage == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif damage == "bytes":
        data += draw(st.binary(max_size=20))
    elif damage == "bom":
        data = b"\xef\xbb\xbf" + data
    elif damage == "utf16":
        data = text.encode("utf-16", "surrogatepass")
    elif damage == "twice":
        data += data
    elif damage == "flip" and data:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


_HEADER_NAMES = [
    "Authorization", "Content-Type", "X-Request-Id", "Accept", "Cookie", "Range", "Content-Encoding", "Origin",
    "X-Forwarded-For", "If-None-Match", "Transfer-Encoding", "Expect", "Host", "Upgrade",
]  # fmt: skip
_HEADERS = st.dictionaries(
    st.sampled_from(_HEADER_NAMES),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60)
    | st.sampled_from(["application/json", "text/plain", "application/json; charset=latin-1", "gzip", "Bearer x"]),
    max_size=2,
)


@st.composite
def requests(draw: Any) -> Sent:
    """A request to any path: mostly a right method and nearly a right body."""
    path = draw(st.sampled_from([*list(BODIES) * 4, *PATHS]))
    odd = draw(st.integers(0, 9)) == 0
    if path in BODIES and not odd:
        method, body = "POST", draw(bodies(path))
    else:
        method, body = draw(st.sampled_from(METHODS)), draw(st.binary(max_size=50) | bodies("/api/chat"))
    if odd:
        tail = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=15)
        path = draw(st.sampled_from([path + "/", path + "?a=b", path.upper(), "/", "//", "/%00", "/%ff"]) | tail)
        path = path if path.startswith("/") else f"/{path}"
    headers = {"Content-Type": "application/json"}
    if draw(st.integers(0, 5)) == 0:
        headers |= draw(_HEADERS)
    return Sent(method, path, body, headers)


@st.composite
def broken_http(draw: Any) -> tuple[bytes, str]:
    """Bytes that are not quite a request, and how the client leaves: read, close, reset or half."""
    path = draw(st.sampled_from(list(BODIES)))
    body = json.dumps(BODIES[path] | {"stream": draw(st.booleans())}).encode()
    whole = Sent("POST", path, body, {"Content-Type": "application/json"}).bytes()
    head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n".encode()
    chunked = head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    data = draw(
        st.one_of(
            st.integers(0, len(whole)).map(lambda at: whole[:at]),
            st.binary(max_size=200),
            st.tuples(st.integers(0, len(whole) - 1), st.binary(max_size=8)).map(
                lambda pair: whole[: pair[0]] + pair[1] + whole[pair[0] + 1 :]
            ),
            st.sampled_from(
                [
                    chunked + b"zz\r\nabc\r\n0\r\n\r\n",
                    chunked + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
                    chunked + b"fffffffffffffffff\r\n",
                    chunked + b"5\r\nab",
                    chunked + b"-5\r\nabcde\r\n0\r\n\r\n",
                    chunked + b"1;" + b"x" * 9000 + b"\r\na\r\n0\r\n\r\n",
                    head + b"Content-Length: 10\r\nContent-Length: 20\r\n\r\n" + body,
                    head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                    head + b"Content-Length: 99999999999999999999\r\n\r\n",
                    head + b"X: " + b"y" * 40000 + b"\r\n\r\n",
                    head + b"X: y\r\n" * 7000 + b"\r\n",
                    b"GET " + b"/" + b"a" * 40000 + b" HTTP/1.1\r\n\r\n",
                    b"GET / HTTP/9.9\r\n\r\n",
                    b"GET /health HTTP/1.0\r\n\r\n",
                    b"GET /health\r\n\r\n",
                    b"GET http://elsewhere/health HTTP/1.1\r\nConnection: close\r\n\r\n",
                    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
                    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    whole.replace(b"Connection: close", b"Connection: keep-alive") * 3,
                ]
            ),
        )
    )
    return data, draw(st.sampled_from(["read", "read", "close", "reset", "half"]))


def exchange(address: tuple[str, int], data: bytes, leave: str = "read", seconds: float = 30.0) -> bytes:
    """Send bytes on a connection of their own and return what comes back.

    Args:
        address: of the server.
        data: what to send.
        leave: "read" until the server closes; "half": closes the sending side first; "close", "reset": goes at once.
        seconds: for which each piece of the answer is waited for.
    """
    parts: list[bytes] = []
    quietly = contextlib.suppress(OSError)  # the server may hang up on nonsense; that it lives is asked afterwards
    with socket.create_connection(address, timeout=seconds) as connection, quietly:
        connection.sendall(data)
        if leave == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if leave == "half":
            connection.shutdown(socket.SHUT_WR)
        while leave in ("read", "half") and (part := connection.recv(65536)):
            parts.append(part)
    return b"".join(parts)


def judge(answer: bytes, method: str = "POST", whole: bool = True, sent: bytes = b"") -> int:
    """Check one answer: no failure of the server, and errors in OpenAI's shape.

    Args:
        answer: everything that came back.
        method: of the request; HEAD has no body.
        sent: the request; what it says itself may be repeated.
        whole: whether the client stayed until the end; whoever leaves gets no end of a stream.

    Returns:
        The status; 0 when nothing came.
    """
    if not answer:
        return 0
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(None, 2)[1])
    assert status < 500 or status in HTTP_ERRORS_OF_SERVERS, answer[:2000]
    for secret in (b"Traceback", b"/root/", b"/tmp/", b"/work/", b".py", b"waitress", b"Werkzeug"):
        assert secret not in answer or secret in sent, answer[:2000]
    if b"transfer-encoding: chunked" in head.lower():
        body = _dechunk(body)
    if not whole and len(body) < _content_length(head):
        return status
    if status >= 400 and method != "HEAD":
        assert b"application/json" in head, answer[:2000]
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"], answer[:2000]
        assert isinstance(error["message"], str) and isinstance(error["type"], str)
    elif not whole:
        return status
    elif b"text/event-stream" in head and method != "HEAD":
        events = [event for event in body.decode().split("\n\n") if event and not event.startswith(":")]
        assert events[-1] == "data: [DONE]" or '"error"' in events[-1], answer[-2000:]
        for event in events[:-1]:
            json.loads(event.removeprefix("data: "))
    elif b"application/json" in head and method != "HEAD" and body:
        json.loads(body)
    return status


def _content_length(head: bytes) -> int:
    lines = (line.split(b":") for line in head.lower().split(b"\r\n")[1:] if line.startswith(b"content-length:"))
    return next((int(value) for _, value in lines), 0)


def _dechunk(body: bytes) -> bytes:
    parts, rest = [], body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        parts.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(parts)
