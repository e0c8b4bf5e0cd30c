"""Serving on a CPU: PaddleSFT's server against itself, one reply at a time, and a plain transformers + FastAPI server.

    .venv/bin/python benchmarks/serving.py                                     # all servers, all cores but one
    .venv/bin/python benchmarks/serving.py --prompts gsm8k/test.jsonl --rates 0.5 1 2
    .venv/bin/python benchmarks/serving.py --shared_system_prompt 400          # what the prefix cache does
    .venv/bin/python benchmarks/serving.py --rounds 1 --window 5 --rates 1 --dry

Every server has SmolLM2-135M-Instruct in float32, a process of its own that lives through the whole run, and the same
number of threads. In each round they take turns with the same requests: over real HTTP, streamed, greedy, at times
drawn from a Poisson process that does not wait for answers (open loop), so that a server that is too slow gets a queue.
Replies have a given length (min_tokens = max_tokens), so everybody does the same work. Latencies count from the moment
at which a request should have been sent. Every round has prompts of its own: no server has seen them before.

Prints a table, writes it and a picture into docs/serving-speed.md, and everything that was measured into --json. The
exit code is 1 where a request was not answered in full.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
WORKERS = Path(__file__).parent / "workers"
sys.path[:0] = [str(REPO), str(Path(__file__).parent), str(WORKERS)]

from decode_speed import make_artifacts  # noqa: E402
from http_clients import Answer, ServerProcess, ask  # noqa: E402
from pages import write_page  # noqa: E402
from train_speed import machine  # noqa: E402

PAGE = REPO / "docs" / "serving-speed.md"
PICTURE = REPO / "docs" / "pictures" / "serving.svg"
MARKERS = "<!-- figures of serving.py{} -->", "<!-- end of the figures of serving.py{} -->"
BASE, ONE, EAGER = "transformers + FastAPI", "PaddleSFT eager, 1 row", "PaddleSFT eager, 8 rows"
GRAPH, WITHOUT = "PaddleSFT ONNX graph, 8 rows", ", no prefix cache"
REPLIES = (16, 24, 32, 48, 64)  # tokens
SYSTEM = "You are the assistant of a shop for fruit and vegetables. Answer politely, briefly and with numbers. "
SHARED = 100  # tokens of the system prompt that a third of the requests has, where nothing else is said


@dataclass(frozen=True)
class Server:
    """One of those that are compared.

    Attributes:
        name: as the table has it.
        command: starts it; ``{port}`` stands for the port.
    """

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Arrival:
    """A request.

    Attributes:
        at: seconds after the first.
        body: of HTTP.
    """

    at: float
    body: dict[str, Any]


def servers(place: Path, arguments: argparse.Namespace) -> list[Server]:
    """Return what can be compared; without prefix cache only where prompts begin alike."""

    def ours(name: str, model: str, *more: str) -> Server:
        command = (sys.executable, "-m", "paddlesft", "serve", str(place / model), "--flask_port", "{port}")
        return Server(name, (*command, "--page", "false", "--max_queue", "256", *more))

    usual = (str(arguments.torch_python), str(WORKERS / "serve_transformers.py"), str(place / "hf"), "{port}")
    no_cache = ("--prefix_cache_tokens", "0")
    if arguments.shared_system_prompt:
        return [
            ours(EAGER + WITHOUT, "float32", *no_cache),
            ours(EAGER, "float32"),
            ours(GRAPH + WITHOUT, "float32-onnx", *no_cache),
            ours(GRAPH, "float32-onnx"),
        ]
    return [
        Server(BASE, usual),
        ours(ONE, "float32", "--max_rows", "1"),
        ours(EAGER, "float32"),
        ours(GRAPH, "float32-onnx"),
    ]


def main() -> int:
    arguments = parse()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="serving-") as scratch:
        place = arguments.artifacts or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        chosen = [one for one in servers(place, arguments) if any(fnmatch(one.name, p) for p in arguments.only)]
        models = {Path(part).name for one in chosen for part in one.command if Path(part).parent == place}
        failed = make_artifacts(place, models)
        if failed:
            sys.exit(f"{', '.join(failed)} could not be made.")
        measured = measure(place, arguments, chosen)
    measured |= {"machine": about, "arguments": {k: str(v) for k, v in vars(arguments).items()}}
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    text = report(arguments, measured)
    print(text)
    if not arguments.dry:
        part = " --shared_system_prompt" if arguments.shared_system_prompt else ""
        write_page(PAGE, text, *(marker.format(part) for marker in MARKERS))
        if not part:
            draw(measured, PICTURE)
    return int(any(cell["incomplete"] for rates in measured["cells"].values() for cell in rates.values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="requests per second")
    parser.add_argument("--window", type=float, default=15.0, help="seconds in which requests arrive (15)")
    parser.add_argument("--rounds", type=int, default=2, help="measured rounds (2)")
    parser.add_argument(
        "--threads", type=int, default=max(1, cores - 1), help="of every server (all cores but one, the client's)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and prompts (1)")
    parser.add_argument("--prompts", type=Path, help="JSON lines with a field question; default: built-in ones")
    parser.add_argument("--shared_system_prompt", type=int, default=0, metavar="TOKENS", help="of every request")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of servers' names")
    parser.add_argument("--artifacts", type=Path, help="keep what is converted here, and use what is there")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--dry", action="store_true", help="leave docs/serving-speed.md as it is")
    parser.add_argument("--torch-python", type=Path, default=REPO / ".venv-oracle" / "bin" / "python")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or min(arguments.rates) <= 0 or arguments.window <= 0:
        parser.error("--rounds is at least 1, --rates and --window are above 0")
    if not arguments.torch_python.exists():
        parser.error(f"{arguments.torch_python} is missing; `make .venv-oracle/.installed` makes it")
    return arguments


# --- what is asked ----------------------------------------------------------------------------------------------------


def questions_of(path: Path | None, count: int, seed: int) -> list[str]:
    """Return questions of varied length."""
    draw_one = random.Random(seed)
    if path is not None:
        lines = [json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines()]
        draw_one.shuffle(lines)
        if len(lines) < count:
            sys.exit(f"{path} has {len(lines)} questions, {count} are needed.")
        return lines[:count]
    names, things = ("Ann", "Boris", "Chen", "Dana", "Emil"), ("apples", "pears", "carrots", "onions", "plums")
    found = []
    for _ in range(count):
        sentences = [
            f"{draw_one.choice(names)} has {draw_one.randint(2, 99)} {draw_one.choice(things)} and buys "
            f"{draw_one.randint(2, 99)} more."
            for _ in range(draw_one.choice((1, 1, 2, 3, 5, 8)))
        ]
        found.append(" ".join([*sentences, "How many are there now, and why?"]))
    return found


def plan(arguments: argparse.Namespace, system: str) -> dict[tuple[int, float], list[Arrival]]:
    """Return the requests of each round and rate; round 0 warms up."""
    times: dict[tuple[int, float], list[float]] = {}
    for number in range(arguments.rounds + 1):
        for rate in arguments.rates if number else arguments.rates[:1]:
            draw_one, at, found = random.Random(f"{arguments.seed} {number} {rate}"), 0.0, []
            while at < arguments.window or len(found) < 2:
                found.append(at)
                at += draw_one.expovariate(rate)
            times[number, rate] = found if number else [0.0, 0.0, 0.5]
    questions = iter(questions_of(arguments.prompts, sum(map(len, times.values())), arguments.seed))
    planned = {}
    for (number, rate), found in times.items():
        draw_one = random.Random(f"{arguments.seed} {number} {rate} lengths")
        planned[number, rate] = [Arrival(at, _body(next(questions), system, draw_one, arguments)) for at in found]
    return planned


def _body(question: str, system: str, draw_one: random.Random, arguments: argparse.Namespace) -> dict[str, Any]:
    length = draw_one.choice(REPLIES)
    messages = [{"role": "user", "content": question}]
    if arguments.shared_system_prompt or draw_one.random() < 1 / 3:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, "max_tokens": length, "min_tokens": length, "temperature": 0, "stream": True}


def system_prompt(place: Path, tokens: int) -> str:
    """Return a text of about so many tokens."""
    from paddlesft.models import load_tokenizer

    tokenizer = load_tokenizer(place / "float32")
    text = SYSTEM + "".join(f"Article {i}: {7 * i + 3} pieces, {i + 2} coins each. " for i in range(tokens))
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]).strip()


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(place: Path, arguments: argparse.Namespace, chosen: list[Server]) -> dict[str, Any]:
    """Let the servers take turns.

    Returns:
        ``cells``: figures by server and rate; ``texts``: of how many replies the text is that of the first server;
        ``memory``: the most that each server held, in MB.
    """
    planned = plan(arguments, system_prompt(place, arguments.shared_system_prompt or SHARED))
    running: dict[str, ServerProcess] = {}
    answers: dict[str, dict[float, list[list[Answer]]]] = {one.name: {r: [] for r in arguments.rates} for one in chosen}
    try:
        for number, one in enumerate(chosen):
            running[one.name] = ServerProcess(one.command, arguments.threads, place / f"server-{number}.log")
            running[one.name].wait_until_ready()
        for (number, rate), arrivals in planned.items():
            begin, said = time.perf_counter(), []
            for name in list(running) if number % 2 else list(reversed(running)):
                before = time.perf_counter()
                found = send(running[name].port, arrivals)
                if number:
                    answers[name][rate].append(found)
                said.append(f"{name} {time.perf_counter() - before:.0f} s")
            took = f"{time.perf_counter() - begin:.0f} s ({', '.join(said)})"
            print(f"round {number} of {arguments.rounds}, {rate:g} requests/s, {len(arrivals)}: {took}", flush=True)
        memory = {name: server.status("VmHWM") / 1000 for name, server in running.items()}
    finally:
        for server in running.values():
            server.stop()
    cells = {
        name: {f"{rate:g}": figures(planned, rate, rounds) for rate, rounds in of.items()}
        for name, of in answers.items()
    }
    return {"cells": cells, "texts": equal_texts(answers), "memory": memory}


def send(port: int, arrivals: list[Arrival]) -> list[Answer]:
    """Send requests at their times, whatever becomes of those before, and wait for all answers."""
    answers: list[Answer | None] = [None] * len(arrivals)

    def one(index: int, sent: float) -> None:
        answers[index] = ask(port, arrivals[index].body, sent)

    begin, threads = time.perf_counter(), []
    for index, arrival in enumerate(arrivals):
        time.sleep(max(0.0, begin + arrival.at - time.perf_counter()))
        threads.append(threading.Thread(target=one, args=(index, begin + arrival.at), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer is not None]


def figures(planned: dict, rate: float, rounds: list[list[Answer]]) -> dict[str, Any]:
    """Return the figures of one server at one rate: rates per round, latencies of all rounds together."""
    tokens_per_s, requests_per_s, first, gaps, pace, whole = [], [], [], [], [], []
    outcomes: dict[str, int] = {}
    for number, answers in enumerate(rounds, start=1):
        begin, tokens, complete = min(a.sent for a in answers), 0, 0
        end = max(a.ended for a in answers)
        for answer, arrival in zip(answers, planned[number, rate]):
            outcomes[answer.outcome] = outcomes.get(answer.outcome, 0) + 1
            if answer.outcome != "complete":
                continue
            asked = arrival.body["max_tokens"]
            complete, tokens = complete + 1, tokens + asked
            first.append(answer.pieces[0] - answer.sent)
            gaps += [b - a for a, b in zip(answer.pieces, answer.pieces[1:])]
            pace.append((answer.pieces[-1] - answer.pieces[0]) / (asked - 1))
            whole.append(answer.ended - answer.sent)
        tokens_per_s.append(tokens / (end - begin))
        requests_per_s.append(complete / (end - begin))
    return {
        "tokens_per_s": statistics.median(tokens_per_s),
        "requests_per_s": statistics.median(requests_per_s),
        "first": percentiles(first),
        "gap": percentiles(gaps),
        "token": percentiles(pace),
        "whole": percentiles(whole),
        "requests": sum(outcomes.values()),
        "refused": outcomes.get("refused", 0),
        "incomplete": sum(outcomes.values()) - outcomes.get("complete", 0) - outcomes.get("refused", 0),
        "rounds": {"tokens_per_s": tokens_per_s, "requests_per_s": requests_per_s},
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile."""
    ordered = sorted(values) or [float("nan")]
    return {f"p{p}": ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] for p in (50, 95, 99)}


def equal_texts(answers: dict[str, dict[float, list[list[Answer]]]]) -> dict[str, list[int]]:
    """Compare all texts with those of the first server, which had the same requests; return equal ones and all."""
    texts = {
        name: [answer.text.strip() for rounds in of.values() for answers in rounds for answer in answers]
        for name, of in answers.items()
    }
    expected = next(iter(texts.values()))
    return {name: [sum(a == b for a, b in zip(found, expected)), len(expected)] for name, found in texts.items()}


# --- telling ----------------------------------------------------------------------------------------------------------


def report(arguments: argparse.Namespace, measured: dict[str, Any]) -> str:
    """Return the text for the page."""
    cells, memory = measured["cells"], measured["memory"]
    base = next(iter(cells))
    table = [
        "| server | tokens/s | of the first | requests/s | first token p50 / p95 / p99 | per token p50 / p95 | "
        "gap p50 / p95 / p99 | whole reply p50 / p95 / p99 | refused |",
        "|---|" + "---:|" * 8,
    ]
    for rate in next(iter(cells.values())):
        table.append(f"| *{rate} requests/s* |" + " |" * 8)
        for name, of in cells.items():
            cell = of[rate]
            speed = cell["tokens_per_s"] / cells[base][rate]["tokens_per_s"]
            columns = [
                name, f"**{cell['tokens_per_s']:.1f}**", f"{speed:.2f}x", f"{cell['requests_per_s']:.2f}",
                _seconds(cell["first"]), _milliseconds(cell["token"], ("p50", "p95")), _milliseconds(cell["gap"]),
                _seconds(cell["whole"]), str(cell["refused"]),
            ]  # fmt: skip
            table.append(f"| {' | '.join(columns)} |")
    highest = list(next(iter(cells.values())))[-1]
    lines = [
        f"    .venv/bin/python benchmarks/serving.py {_arguments(arguments)}".rstrip(),
        "",
        f"{measured['machine']}; {_count(arguments.threads, 'thread')} for every server, the client beside them. "
        f"Requests arrive for {arguments.window:g} s, {_count(arguments.rounds, 'round')}, "
        f"{_count(sum(c['requests'] for c in cells[base].values()), 'request')} for each server in all; rates are "
        "medians of the rounds, percentiles are over all requests of a row.",
        "",
        *table,
        "",
    ]
    pairs = [(name, name + WITHOUT) for name in cells if name + WITHOUT in cells]
    for name, other in pairs or [(name, base) for name in list(cells)[1:]]:
        ours, theirs = cells[name][highest], cells[other][highest]
        lines.append(
            f"- {name} against {other} at {highest} requests/s: "
            f"{ours['tokens_per_s'] / theirs['tokens_per_s']:.2f}x the throughput; medians: first token "
            f"{theirs['first']['p50'] / ours['first']['p50']:.2f}x as fast, whole reply "
            f"{theirs['whole']['p50'] / ours['whole']['p50']:.2f}x, per token "
            f"{theirs['token']['p50'] / ours['token']['p50']:.2f}x."
        )
    same = ", ".join(f"{name} {equal} of {count}" for name, (equal, count) in list(measured["texts"].items())[1:])
    lines.append(f"- Replies whose text is exactly that of {base}: {same}.")
    held = ", ".join(f"{name} {size:.0f} MB" for name, size in memory.items())
    lines.append(f"- Most memory that the process held: {held}.")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _arguments(arguments: argparse.Namespace) -> str:
    said = [f"--rates {' '.join(f'{rate:g}' for rate in arguments.rates)} --window {arguments.window:g}"]
    said.append(f"--rounds {arguments.rounds}")
    said += [f"--shared_system_prompt {n}" for n in [arguments.shared_system_prompt] if n]
    said += [f"--prompts {path.name}" for path in [arguments.prompts] if path]
    return " ".join(said)


def _seconds(of: dict[str, float]) -> str:
    return " / ".join(f"{of[p]:.2f}" for p in ("p50", "p95", "p99")) + " s"


def _milliseconds(of: dict[str, float], which: tuple[str, ...] = ("p50", "p95", "p99")) -> str:
    return " / ".join(f"{of[p] * 1e3:.0f}" for p in which) + " ms"


def draw(measured: dict[str, Any], path: Path) -> None:
    """Draw throughput and latencies over the rate of arrivals."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path.relative_to(REPO)} stays as it is: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "serving"
    from matplotlib import pyplot

    panels = (
        ("generated tokens per second", lambda cell: cell["tokens_per_s"], "linear"),
        ("first token, p95 (s)", lambda cell: cell["first"]["p95"], "log"),
        ("per further token, median (ms)", lambda cell: cell["token"]["p50"] * 1e3, "linear"),
    )
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 3.8), layout="constrained")
    for axis, (title, value, scale) in zip(axes, panels):
        for (name, of), mark in zip(measured["cells"].items(), "sovD"):
            axis.plot([float(rate) for rate in of], [value(cell) for cell in of.values()], marker=mark, label=name)
        axis.set(title=title, xlabel="requests per second that arrive", yscale=scale)
        axis.set_xlim(left=0)
        if scale == "linear":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    print(f"drawn into {path.relative_to(REPO)}")


if __name__ == "__main__":
    sys.exit(main())
