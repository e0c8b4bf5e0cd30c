"""Minutes of overload against the real server: is any request lost, and does anything grow?

    .venv/bin/python benchmarks/serving_soak.py                                # five minutes, SmolLM2
    .venv/bin/python benchmarks/serving_soak.py --model DIR --seconds 10       # another model, shorter

More clients than the server has places for ask `paddlesft serve` all the time: streams and whole replies, clients that
leave within a stream or while their prompt is computed, slow readers, bad requests, and bursts far beyond the queue. At
the end the server is asked to stop (SIGTERM) while it streams. What has to hold, or the exit code is 1:

- Every request has exactly one outcome: all of its reply, 429 with Retry-After, 4xx for a bad one, 503 or an error
  event once the server stops, or this client has left. No answer breaks off, none fails to come.
- The server has counted as many requests as were sent.
- Memory, threads and open files stay what they are; nothing is left in the engine when all clients have gone.
- The server ends with code 0, within its time, and its log has no traceback.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from http_clients import Answer, ServerProcess, ask

ROWS, QUEUE = 4, 8
DRAIN = 3.0  # seconds for running replies after SIGTERM
LEFT_OVER = 20.0  # seconds in which the engine has to become empty
SLOW = 20  # pieces that a slow reader takes slowly
SPARE_FILES = 3  # more open files than at the beginning, such as connections that are just being closed
GROWTH, SLACK = 1.05, 16 * 1024  # of memory from the second third to the last: factor, and KiB besides

ALLOWED = {
    "stream": {"complete", "refused"},
    "whole": {"complete", "refused"},
    "slow reader": {"complete", "refused"},
    "leaves in the stream": {"left", "complete", "refused"},
    "leaves at once": {"left"},
    "bad request": {"bad", "refused"},  # a full queue is seen before a reply that is too long
    "burst": {"complete", "refused"},
}
STOPPING = {"stopping", "error"}  # also allowed once the server has been told to stop


@dataclass
class Soak:
    """What was seen.

    Attributes:
        counts: requests by kind and outcome.
        wrong: what should not have happened.
        memory: KiB held, once a second.
        threads: once a second.
        files: that the server has open, once a second.
        idle_files: open before the clients came.
    """

    counts: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    idle_files: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, kind: str, answer: Answer, stopping_since: float | None = None) -> None:
        """Count an answer, and judge it."""
        allowed = set(ALLOWED[kind])
        outcome = answer.outcome
        if stopping_since is not None:
            allowed |= STOPPING
            if outcome == "unanswered" and answer.sent >= stopping_since:
                outcome = "came too late"  # nobody listens any more
                allowed.add(outcome)
        with self.lock:
            self.counts[kind, outcome] += 1
            if outcome not in allowed:
                self.wrong.append(f"{kind}: {outcome}, status {answer.status}: {answer.detail}")
            elif outcome == "refused" and not answer.headers.get("retry-after", "").isdigit():
                self.wrong.append(f"{kind}: 429 without Retry-After")
            elif outcome == "complete" and answer.usage.get("completion_tokens") is None:
                self.wrong.append(f"{kind}: complete, but without usage")

    @property
    def requests(self) -> int:
        """How many were sent."""
        return sum(self.counts.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2", help="what is served")
    parser.add_argument("--seconds", type=float, default=300.0, help="of overload (300)")
    parser.add_argument("--clients", type=int, default=24, help=f"that ask all the time; {ROWS + QUEUE} have a place")
    parser.add_argument("--tokens", type=int, default=32, help="of the longest replies (32)")
    parser.add_argument("--threads", type=int, default=1, help="of the server's computation (1)")
    parser.add_argument("--seed", type=int, default=1, help="of what the clients do")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        command = [
            sys.executable, "-m", "paddlesft", "serve", arguments.model, "--flask_port", "{port}", "--page", "false",
            "--max_rows", str(ROWS), "--max_queue", str(QUEUE), "--drain_seconds", str(DRAIN),
        ]  # fmt: skip
        server = ServerProcess(command, arguments.threads, Path(scratch) / "server.log")
        try:
            server.wait_until_ready()
            soak = Soak()
            overload(server, soak, arguments)
            check_nothing_left(server, soak)
            check_bounded(soak)
            stop_in_streams(server, soak, arguments)
            if "Traceback" in server.printed():
                soak.wrong.append(f"the server's log has a traceback:\n{server.printed()[-2000:]}")
        finally:
            server.kill()
    return tell(soak)


def overload(server: ServerProcess, soak: Soak, arguments: argparse.Namespace) -> None:
    """Let clients ask for a while, with bursts besides, and sample the server."""
    warm = ((server.port, "stream", random.Random(n), arguments, soak.saw) for n in range(ROWS + QUEUE))
    run_all([threading.Thread(target=one_request, args=args, daemon=True) for args in warm])
    soak.idle_files = server.files()
    end = time.monotonic() + arguments.seconds

    def client(number: int) -> None:
        draw_one = random.Random(f"{arguments.seed} {number}")
        kinds = ("stream", "whole", "slow reader", "leaves in the stream", "leaves at once", "bad request")
        while time.monotonic() < end:
            kind = draw_one.choices(kinds, (5, 2, 2, 3, 2, 2))[0]
            answer = one_request(server.port, kind, draw_one, arguments, soak.saw)
            time.sleep(draw_one.uniform(0.2, 0.6) if answer.outcome == "refused" else draw_one.uniform(0, 0.1))

    def bursts() -> None:
        draw_one = random.Random(arguments.seed)
        while (pause := min(15.0, arguments.seconds / 4)) < end - time.monotonic():
            time.sleep(pause)
            draws = [random.Random(draw_one.random()) for _ in range(3 * (ROWS + QUEUE))]
            together = ((server.port, "burst", draw, arguments, soak.saw) for draw in draws)
            run_all([threading.Thread(target=one_request, args=args, daemon=True) for args in together])

    workers = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(arguments.clients)]
    workers.append(threading.Thread(target=bursts, daemon=True))
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        time.sleep(min(1.0, arguments.seconds / 30))
        if time.monotonic() < end:
            sample(server, soak)
        if time.monotonic() > end + 120:
            soak.wrong.append(f"{sum(worker.is_alive() for worker in workers)} clients still wait 120 s after the end")
            return


def sample(server: ServerProcess, soak: Soak) -> None:
    """Look at the server's process once."""
    if server.process.poll() is not None:
        sys.exit(f"The server died with code {server.process.returncode}:\n{server.printed()[-3000:]}")
    soak.memory.append(server.status("VmRSS"))
    soak.threads.append(server.status("Threads"))
    soak.files.append(server.files())


def run_all(threads: list[threading.Thread]) -> None:
    """Run threads to their end."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def one_request(
    port: int,
    kind: str,
    draw_one: random.Random,
    arguments: argparse.Namespace,
    saw: Callable[[str, Answer], None],
) -> Answer:
    """Send one request of a kind and count what becomes of it."""
    long = kind == "leaves at once" or draw_one.random() < 0.15
    text = "Count the apples. " * (draw_one.randint(40, 80) if long else draw_one.randint(1, 8))
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": text + str(draw_one.random())}],
        "max_tokens": draw_one.randint(1, 4) if kind == "burst" else draw_one.randint(4, arguments.tokens),
        "temperature": draw_one.choice((0, 0.8)),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    leave: Callable[[Answer], bool] = lambda answer: False  # noqa: E731
    content: dict[str, Any] | bytes = body
    if kind == "whole":
        body.pop("stream_options")
        body["stream"] = False
    elif kind == "bad request":
        content = draw_one.choice(
            (b"{", b"[]", {**body, "max_tokens": -1}, {**body, "temprature": 1}, {**body, "messages": []},
             {**body, "max_tokens": 10**7}, {**body, "model": "another"})
        )  # fmt: skip
    elif kind == "slow reader":
        seconds = draw_one.uniform(0.05, 0.3)
        leave = lambda answer: 0 < len(answer.pieces) < SLOW and bool(time.sleep(seconds))  # noqa: E731
    elif kind == "leaves in the stream":
        most = draw_one.randint(1, max(1, body["max_tokens"] // 2))
        leave = lambda answer: len(answer.pieces) >= most  # noqa: E731
    elif kind == "leaves at once":
        seconds = draw_one.uniform(0, 0.2)
        leave = lambda answer: time.sleep(seconds) is None  # noqa: E731
    answer = ask(port, content, timeout=120, leave=leave)
    saw(kind, answer)
    return answer


def figures(server: ServerProcess) -> dict[str, float]:
    """Return what /metrics says: sums over labels, by name."""
    found: collections.Counter[str] = collections.Counter()
    for line in server.get("/metrics")[1].splitlines():
        match = re.match(r"(\w+)(\{.*\})? (\S+)$", line)
        if match and (not match[2] or 'path="/v1/chat/completions"' in match[2]):
            found[match[1]] += float(match[3])
    return found


def check_nothing_left(server: ServerProcess, soak: Soak) -> None:
    """See that the engine becomes empty, that all requests were counted, and that threads and files are as before."""
    end = time.monotonic() + LEFT_OVER
    while time.monotonic() < end:
        now = figures(server)
        if not now["paddlesft_active_rows"] and not now["paddlesft_waiting_requests"]:
            break
        time.sleep(0.2)
    else:
        soak.wrong.append(f"the engine still has work {LEFT_OVER:g} s after the last client: {dict(now)}")
    files = server.files()
    if files > soak.idle_files + SPARE_FILES:
        soak.wrong.append(f"{files} files are open when all clients have gone; {soak.idle_files} were before they came")
    sent, least = soak.requests, soak.requests - soak.counts["leaves at once", "left"]
    if not least <= now["paddlesft_requests_total"] <= sent:
        soak.wrong.append(f"{sent} requests were sent, the server counted {now['paddlesft_requests_total']:g}")
    print(f"{sent} requests were sent, the server counted {now['paddlesft_requests_total']:g}; its engine is empty.")
    print(f"Open files without clients: {soak.idle_files} before, {files} after.")


def check_bounded(soak: Soak) -> None:
    """Compare the last third of the samples with the second."""
    third = len(soak.memory) // 3
    if third < 3:
        soak.wrong.append(f"only {len(soak.memory)} samples were taken")
        return
    middle, last = statistics.median(soak.memory[third : 2 * third]), statistics.median(soak.memory[-third:])
    print(f"Memory, medians of the thirds: {statistics.median(soak.memory[:third]) / 1024:.0f}, {middle / 1024:.0f}, "
          f"{last / 1024:.0f} MiB; most {max(soak.memory) / 1024:.0f} MiB.")  # fmt: skip
    print(f"Threads {min(soak.threads)} to {max(soak.threads)}, open files {min(soak.files)} to {max(soak.files)}.")
    if last > middle * GROWTH + SLACK:
        soak.wrong.append(f"memory grows: {middle} KiB in the second third, {last} KiB in the last")
    if max(soak.threads[-third:]) > max(soak.threads[:third]):
        soak.wrong.append(f"threads grow: {soak.threads}")


def stop_in_streams(server: ServerProcess, soak: Soak, arguments: argparse.Namespace) -> None:
    """Ask the server to stop while it streams and more requests come."""
    told: list[float] = []
    ended = threading.Event()

    def saw(kind: str, answer: Answer) -> None:
        soak.saw(kind, answer, told[0] if told else None)

    def client(number: int) -> None:
        draw_one = random.Random(f"{arguments.seed} end {number}")
        while not ended.is_set():
            answer = one_request(server.port, draw_one.choice(("stream", "slow reader", "whole")), draw_one, long, saw)
            time.sleep(0.05 if answer.outcome == "complete" else 0.3)

    long = argparse.Namespace(**{**vars(arguments), "tokens": 8 * arguments.tokens})
    clients = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(ROWS + QUEUE + 4)]
    for one in clients:
        one.start()
    time.sleep(1.0)
    told.append(time.perf_counter())
    code = server.stop(DRAIN + 30)
    seconds = time.perf_counter() - told[0]
    ended.set()
    for one in clients:
        one.join(timeout=60)
    print(f"Stopped in the middle of streams: code {code} after {seconds:.1f} s.")
    if code != 0:
        soak.wrong.append(f"the server ended with code {code}:\n{server.printed()[-2000:]}")
    if any(one.is_alive() for one in clients):
        soak.wrong.append("clients still wait for a server that has ended")


def tell(soak: Soak) -> int:
    """Print the outcomes; return the exit code."""
    print("\n| kind | outcome | requests |\n|---|---|---:|")
    for (kind, outcome), count in sorted(soak.counts.items()):
        print(f"| {kind} | {outcome} | {count} |")
    print(f"\n{soak.requests} requests, {len(soak.wrong)} wrong.")
    for problem, count in collections.Counter(soak.wrong).most_common(20):
        print(f"  {count} x {problem}", file=sys.stderr)
    print("ok" if not soak.wrong else "FAILED", flush=True)
    return int(bool(soak.wrong))


if __name__ == "__main__":
    sys.exit(main())
