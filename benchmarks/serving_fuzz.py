"""Thousands of requests that are nearly right, and of connections that are nearly HTTP, against the running server.

    python benchmarks/serving_fuzz.py
    python benchmarks/serving_fuzz.py --requests 20000 --connections 5000 --seed 7

The server is the real one, over a tiny random model, on a free port of this machine. Whatever is answered is judged: no
status of 500 and more but 501, every error in OpenAI's shape, every stream with its end; at the end the server answers
as before, with as many threads and nothing left inside. What fails is shrunk to a short example. The requests are those
of tests/serving/fuzzing.py, of which the tests send a few hundred.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import psutil  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from paddlesft.models import resolve_model  # noqa: E402
from paddlesft.serving.settings import ServingSettings  # noqa: E402
from tests.serving.fuzzing import BODIES, Sent, broken_http, exchange, judge, requests  # noqa: E402
from tests.serving.running import RunningServer, running  # noqa: E402
from tests.tiny_models import write_tiny_llama  # noqa: E402

JSON = {"Content-Type": "application/json"}
TOGETHER = 8  # requests at the same time
PATIENCE = 0.3  # seconds for the answer to what may be no request


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6000, help="nearly right requests")
    parser.add_argument("--connections", type=int, default=2000, help="nearly HTTP")
    parser.add_argument("--seed", type=int, default=1, help="of what is sent")
    options = parser.parse_args()
    logging.getLogger("paddlesft.requests").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_tiny_llama(Path(scratch) / "tiny", tokenizer_from=resolve_model("embedded:smollm2"))
        with running(directory, settings=ServingSettings(max_output_tokens=6, receive_seconds=10)) as server:
            return fuzz(server, options)


def fuzz(server: RunningServer, options: argparse.Namespace) -> int:
    parts = urlsplit(server.url)
    address = parts.hostname, parts.port
    statuses: collections.Counter[int] = collections.Counter()
    before, process = threading.active_count(), psutil.Process()
    files = process.num_fds()
    begin = time.monotonic()
    often = settings(
        max_examples=max(1, options.requests // TOGETHER),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    pool = ThreadPoolExecutor(TOGETHER)

    @seed(options.seed)
    @often
    @given(st.lists(requests(), min_size=TOGETHER, max_size=TOGETHER))
    def send_requests(batch: list) -> None:
        answers = pool.map(lambda one: exchange(address, one.bytes()), batch)
        for sent, answer in zip(batch, answers):
            statuses[judge(answer, sent.method, sent=sent.bytes())] += 1

    @seed(options.seed)
    @settings(often, max_examples=max(1, options.connections // TOGETHER))
    @given(st.lists(broken_http(), min_size=TOGETHER, max_size=TOGETHER))
    def send_bytes(batch: list) -> None:
        # the rest of a request that is not complete is not waited for
        answers = pool.map(lambda one: exchange(address, *one, seconds=PATIENCE), batch)
        for (data, _), answer in zip(batch, answers):
            statuses[judge(answer, whole=False, sent=data)] += 1

    send_requests()
    memory = process.memory_info().rss
    print(f"requests by status: {dict(sorted(statuses.items()))}, {time.monotonic() - begin:.0f} s", flush=True)
    statuses.clear()
    begin = time.monotonic()
    send_bytes()
    print(f"connections by status (0: none): {dict(sorted(statuses.items()))}, {time.monotonic() - begin:.0f} s")
    pool.shutdown()
    server.wait_until_idle()
    for path, body in BODIES.items():
        answer = exchange(address, Sent("POST", path, json.dumps(body).encode(), JSON).bytes())
        assert judge(answer) == 200, f"{path} does not answer any more"
    end = time.monotonic() + 30
    while (server.front.in_flight or process.num_fds() > files) and time.monotonic() < end:
        time.sleep(0.1)
    grown = (process.memory_info().rss - memory) / 2**20
    after, open_files = threading.active_count(), process.num_fds()
    print(
        f"threads: {before} before, {after} after; open files: {files} before, {open_files} after; requests inside: "
        f"{server.front.in_flight}; memory of the connections: {grown:+.0f} MiB"
    )
    return 0 if after <= before and open_files <= files and not server.front.in_flight else 1


if __name__ == "__main__":
    sys.exit(main())
