"""What serving.py and serving_soak.py have in common: servers in processes of their own, and a client that streams.

The client is the standard library's, one thread for each request: it costs little beside a model on the same cores.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
CHAT = "/v1/chat/completions"


@dataclass
class Answer:
    """What became of one request. Times are those of ``time.perf_counter``.

    Attributes:
        outcome: ``complete`` (all of the stream came), ``refused`` (429), ``stopping`` (503), ``bad`` (another status
            of 400 and more), ``error`` (an error event in the stream), ``left`` (this client closed the connection),
            ``unanswered`` (the connection was closed before a status came), ``cut`` (it ended within a stream).
        status: of HTTP; 0 where none came.
        sent: when it should have been sent.
        pieces: when pieces of the reply came.
        ended: when its end came.
        text: of the reply.
        usage: numbers of tokens, where the server says them.
        headers: of the answer, in lower case.
        detail: of an error.
    """

    outcome: str = "cut"
    status: int = 0
    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    detail: str = ""


def ask(
    port: int,
    body: dict[str, Any] | bytes,
    sent: float | None = None,
    timeout: float = 300.0,
    leave: Callable[[Answer], bool] = lambda answer: False,
) -> Answer:
    """Send one request for a chat and read the answer, mostly a stream.

    Args:
        port: of the server on this machine.
        body: the request, or bytes that are none.
        sent: when it should have been sent; None: now.
        timeout: seconds without a byte after which the answer counts as cut.
        leave: called before the answer's first byte and after each piece; True closes the connection. May sleep.
    """
    answer = Answer(sent=time.perf_counter() if sent is None else sent)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", CHAT, content, {"Content-Type": "application/json"})
        if leave(answer):
            answer.outcome = "left"
            return answer
        response = connection.getresponse()
        answer.status = response.status
        answer.headers = {name.lower(): value for name, value in response.getheaders()}
        if response.status != 200:
            answer.outcome = {429: "refused", 503: "stopping"}.get(response.status, "bad")
            answer.detail = response.read().decode("utf-8", "replace")[:300]
            return answer
        if answer.headers.get("content-type", "").startswith("application/json"):
            whole = json.loads(response.read())
            answer.outcome, answer.usage = "complete", whole["usage"]
            answer.text = whole["choices"][0]["message"]["content"]
        else:
            _read_stream(response, answer, leave)
    except (OSError, http.client.HTTPException) as error:
        answer.outcome = "cut" if answer.status else "unanswered"
        answer.detail = f"{type(error).__name__}: {error}"[:300]
    finally:
        answer.ended = time.perf_counter()
        connection.close()
    return answer


def _read_stream(response: http.client.HTTPResponse, answer: Answer, leave: Callable[[Answer], bool]) -> None:
    while line := response.readline():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            answer.outcome = "complete"
            continue
        event = json.loads(data)
        if "error" in event:
            answer.outcome, answer.detail = "error", json.dumps(event["error"])[:300]
            continue
        answer.usage = event.get("usage") or answer.usage
        content = event["choices"][0]["delta"].get("content") if event.get("choices") else None
        if content is None or (content == "" and "role" in event["choices"][0]["delta"]):
            continue
        answer.pieces.append(time.perf_counter())
        answer.text += content
        if leave(answer):
            answer.outcome = "left"
            return


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class ServerProcess:
    """A server in a process of its own.

    Args:
        command: starts it; ``{port}`` stands for the port.
        threads: of its computation.
        log: file that receives what it prints.
    """

    def __init__(self, command: Sequence[str], threads: int, log: Path) -> None:
        self.port, self.log = free_port(), log
        environ = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "GLOG_minloglevel": "2",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [part.format(port=self.port) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log.open("w", encoding="utf-8"),
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=REPO,
        )

    def wait_until_ready(self, seconds: float = 180.0) -> None:
        """Wait until it can answer; end the program when it does not come to that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.get("/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        self.kill()
        sys.exit(f"The server did not start (code {self.process.poll()}):\n{self.printed()[-3000:]}")

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def status(self, name: str) -> int:
        """Return a number of ``/proc/PID/status``, such as VmRSS in KiB or Threads."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def files(self) -> int:
        """Return how many files and connections it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def printed(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self, seconds: float = 60.0) -> int | None:
        """Ask it to end; return its exit code, None where it had to be killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)
