"""Speed of generation on a CPU: PaddleSFT's routes against PaddleNLP's generate, transformers and llama.cpp.

    .venv/bin/python benchmarks/decode_speed.py                        # every route, all cores
    .venv/bin/python benchmarks/decode_speed.py --rounds 1 --new-tokens 8 --only 'transformers*' 'PaddleSFT*' --dry

Every route runs SmolLM2-135M-Instruct in a process of its own that lives through the whole run; in each round all of
them take turns with the same prompts and the same number of threads, so that whatever else the machine does hits all.
Rows are equally long, replies are greedy and never end early. Medians of the rounds are compared. Every float32 route
has to give the tokens of PaddleSFT's eager loop, every quantized one those of its own quantized model in memory; the
exit code is 1 where one does not, or where a route could not be made. The table goes to the screen and between two
markers in docs/decode-speed.md.

llama.cpp is measured where an interpreter with llama-cpp-python is named (--llama-python):

    python -m venv .venv-llama && .venv-llama/bin/pip install llama-cpp-python   # compiles for some minutes
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
WORKERS = Path(__file__).parent / "workers"
sys.path[:0] = [str(REPO), str(Path(__file__).parent), str(WORKERS)]

from pages import write_page  # noqa: E402
from pipe import Worker  # noqa: E402
from train_speed import machine  # noqa: E402

PAGE = REPO / "docs" / "decode-speed.md"
BEGIN, END = "<!-- figures of decode_speed.py -->", "<!-- end of the figures of decode_speed.py -->"
BASE, UPSTREAM, EAGER = "transformers", "PaddleNLP generate", "PaddleSFT eager"
WARM_TOKENS = 3
NOT_WEIGHTS = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens")


@dataclass(frozen=True)
class Route:
    """One way to generate.

    Attributes:
        name: as the table has it.
        worker: its script.
        model: what it loads: a key of ``artifacts``.
        arguments: more of the script's arguments.
        same_as: the route whose tokens it has to give; None: they are its own.
    """

    name: str
    worker: str
    model: str
    arguments: tuple[str, ...] = ()
    same_as: str | None = None


def routes() -> list[Route]:
    ours = "decode_paddlesft.py"
    found = [
        Route(BASE, "decode_transformers.py", "hf", ("float32",), EAGER),
        Route("transformers, bfloat16", "decode_transformers.py", "hf", ("bfloat16",)),
        Route(UPSTREAM, "decode_paddlenlp.py", "float32", (), EAGER),
        Route(EAGER, ours, "float32"),
        Route("PaddleSFT Paddle graph", ours, "float32-paddle", (), EAGER),
        Route("PaddleSFT ONNX graph", ours, "float32-onnx", (), EAGER),
        Route("llama.cpp F32", "decode_llama_cpp.py", "F32.gguf", (), EAGER),
    ]
    for name in ("int8", "int4"):
        eager = f"{EAGER}, {name}"
        found += [
            Route(eager, ours, name),
            Route(f"PaddleSFT Paddle graph, {name}", ours, f"{name}-paddle", (), eager),
            Route(f"PaddleSFT ONNX graph, {name}", ours, f"{name}-onnx", (), eager),
            Route(f"PaddleSFT ONNX graph, {name}, fast", ours, f"{name}-onnx-fast"),
        ]
    return [*found, Route("llama.cpp Q8_0", "decode_llama_cpp.py", "Q8_0.gguf")]


def main() -> int:
    arguments = parse()
    chosen = [route for route in routes() if any(fnmatch(route.name, pattern) for pattern in arguments.only)]
    about = machine()
    left_out: dict[str, str] = {}
    if not arguments.llama_python.exists():
        chosen = [route for route in chosen if "llama_cpp" not in route.worker]
        left_out["llama.cpp"] = f"{arguments.llama_python} is not there"
    with tempfile.TemporaryDirectory(prefix="decode-speed-") as scratch:
        place = arguments.artifacts or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        failed = make_artifacts(place, {route.model for route in chosen})
        left_out |= {route.name: failed[route.model] for route in chosen if route.model in failed}
        chosen = [route for route in chosen if route.model not in failed]
        print(f"{len(chosen)} routes made in {time.perf_counter() - begin:.0f} s", flush=True)
        write_setting(place, arguments)
        records, versions = measure(place, arguments, chosen)
        wrong = differences(chosen, records)
        sizes = {route.name: size_of(place / route.model) for route in chosen}
    text = report(arguments, about, chosen, records, versions, sizes, wrong, left_out)
    print(text)
    if not arguments.dry:
        write_page(PAGE, text, BEGIN, END)
    return int(bool(wrong or failed))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt (64)")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of each reply (32)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="numbers of rows (1 8)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (3)")
    parser.add_argument("--threads", type=int, default=cores, help="of every route (all cores)")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of routes' names")
    parser.add_argument(
        "--artifacts", type=Path, help="keep what is quantized and exported here, and use what is there"
    )
    parser.add_argument("--dry", action="store_true", help="leave docs/decode-speed.md as it is")
    parser.add_argument("--torch-python", type=Path, default=REPO / ".venv-oracle" / "bin" / "python")
    parser.add_argument("--llama-python", type=Path, default=REPO / ".venv-llama" / "bin" / "python")
    arguments = parser.parse_args()
    if arguments.new_tokens < 2 or arguments.rounds < 1:
        parser.error("--new-tokens is at least 2, --rounds at least 1")
    if not arguments.torch_python.exists():
        parser.error(f"{arguments.torch_python} is missing; `make .venv-oracle/.installed` makes it")
    return arguments


def make_artifacts(place: Path, wanted: set[str]) -> dict[str, str]:
    """Quantize, export and convert what is not there yet; two at a time.

    Args:
        place: directory for all of them.
        wanted: names: ``float32``, ``int8``, ``int4``, each also with ``-paddle``, ``-onnx`` and ``-onnx-fast``;
            ``hf``; ``KIND.gguf``.

    Returns:
        What went wrong, by name.
    """
    from paddlesft.models import resolve_model, write_hugging_face

    plain = place / "float32"
    if not plain.exists():
        plain.symlink_to(resolve_model("embedded:smollm2"), target_is_directory=True)
    if not (place / "hf").exists():
        write_hugging_face(plain.resolve(), place / "hf")
    kinds = {name.partition("-")[0] for name in wanted}
    verb = [sys.executable, "-m", "paddlesft"]
    first = {
        kind: [
            *verb,
            "quantize",
            f"quant_type=W{kind.upper()}",
            f"model_name_or_path={plain}",
            f"output_dir={place / kind}",
        ]
        for kind in ("int8", "int4")
        if kind in kinds
    }
    first |= {
        name: [
            sys.executable,
            str(WORKERS / "write_gguf.py"),
            str(place / "hf"),
            name.removesuffix(".gguf"),
            str(place / name),
        ]
        for name in wanted
        if name.endswith(".gguf")
    }
    then = {
        name: [
            *verb, "export", "--model_name_or_path", str(place / name.partition("-")[0]), "--output_path",
            str(place / name), "--format", name.split("-")[1], "--check_tokens", "8",
            "--onnx_compute", "fast" if name.endswith("-fast") else "exact",
        ]
        for name in wanted
        if "-" in name
    }  # fmt: skip
    failed: dict[str, str] = {}
    for commands in (first, then):
        todo = {name: command for name, command in commands.items() if not (place / name).exists()}
        with ThreadPoolExecutor(2) as pool:
            for name, problem in zip(todo, pool.map(run_quietly, todo.values())):
                if problem:
                    failed[name] = problem
                    print(f"{name} was not made: {problem}", file=sys.stderr, flush=True)
    return failed


def run_quietly(command: Sequence[str]) -> str:
    """Run a command on one thread; return the end of what it printed where it fails."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "GLOG_minloglevel": "2"}
    done = subprocess.run(command, env=environ, cwd=REPO, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1][-300:] if lines else f"exit code {done.returncode}")


def write_setting(place: Path, arguments: argparse.Namespace) -> None:
    """Write the workers' setting: rows of arithmetic, each from another place of a text."""
    from paddlesft.models import load_tokenizer

    tokenizer = load_tokenizer(place / "float32")
    count = (40 * max(arguments.batch) + arguments.prompt) // 10  # a line has more than ten tokens
    lines = (
        f"Ann has {7 * i + 3} apples and buys {i + 2} more. Now she has {8 * i + 5} apples.\n" for i in range(count)
    )
    ids = tokenizer("".join(lines), add_special_tokens=False)["input_ids"]
    prompts = {
        str(rows): [ids[40 * row : 40 * row + arguments.prompt] for row in range(rows)] for rows in arguments.batch
    }
    setting = {"prompts": prompts, "new_tokens": arguments.new_tokens, "warm_tokens": WARM_TOKENS}
    (place / "setting.json").write_text(json.dumps(setting), encoding="utf-8")


def measure(place: Path, arguments: argparse.Namespace, chosen: list[Route]) -> tuple[dict, dict[str, str]]:
    """Let the routes take turns.

    Returns:
        What the workers answered, by route and number of rows, and versions by route.
    """
    environ = {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1", "GLOG_minloglevel": "2"}
    pythons = {"decode_transformers.py": arguments.torch_python, "decode_llama_cpp.py": arguments.llama_python}
    workers: dict[str, Worker] = {}
    versions: dict[str, str] = {}
    for number, route in enumerate(chosen):
        python = pythons.get(route.worker, Path(sys.executable))
        path = {} if route.worker in pythons else {"PYTHONPATH": str(REPO)}
        workers[route.name] = Worker(
            python, WORKERS / route.worker, [str(place), str(place / route.model), *route.arguments], environ | path,
            place / f"worker-{number}.log",
        )  # fmt: skip
        versions[route.name] = workers[route.name].read()["versions"]
    batches = [str(rows) for rows in arguments.batch]
    records: dict = {route.name: {rows: [] for rows in batches} for route in chosen}
    for turn in range(arguments.rounds + 1):
        begin = time.perf_counter()
        for name in list(workers) if turn % 2 else list(reversed(workers)):
            for rows in batches:
                answer = workers[name].ask(rows if turn else f"warm {rows}")
                if turn:  # the first round warms up
                    records[name][rows].append(answer)
        print(f"round {turn} of {arguments.rounds}: {time.perf_counter() - begin:.0f} s", flush=True)
    for worker in workers.values():
        worker.close()
    return records, versions


def differences(chosen: list[Route], records: dict) -> dict[str, str]:
    """Say which routes gave other tokens than they have to, and where first."""
    wrong = {}
    for route in chosen:
        same_as = route.same_as or route.name
        if same_as not in records:
            continue
        for rows, rounds in records[route.name].items():
            expected = records[same_as][rows][0]["tokens"]
            for answer in rounds:
                for row, (found, right) in enumerate(zip(answer["tokens"], expected)):
                    at = next((i for i, (a, b) in enumerate(zip(found, right)) if a != b), None)
                    if at is not None:
                        wrong.setdefault(route.name, f"batch {rows}, row {row}: token {at} differs from {same_as}")
    return wrong


def size_of(path: Path) -> int:
    """Return the bytes of an artifact, its tokenizer left out."""
    if path.is_file():
        return path.stat().st_size
    files = [file for file in path.resolve().rglob("*") if file.is_file() and not file.name.startswith(NOT_WEIGHTS)]
    return sum(file.stat().st_size for file in files)


def report(
    arguments: argparse.Namespace, about: str, chosen: list[Route], records: dict, versions: dict[str, str],
    sizes: dict[str, int], wrong: dict[str, str], left_out: dict[str, str],
) -> str:  # fmt: skip
    """Return the text for the page: machine, table, what was reached."""
    batches = [str(rows) for rows in arguments.batch]
    step = {n: {b: statistics.median(a["step"] for a in r) for b, r in of.items()} for n, of in records.items()}
    first = {n: {b: statistics.median(a["seconds"] for a in r) for b, r in of.items()} for n, of in records.items()}
    heads = ["route"]
    for rows in batches:
        heads += [f"prompt, {rows} x {arguments.prompt}", f"step of {rows}", f"of {BASE}", "of PaddleNLP"]
    heads += ["memory", "on disk", "tokens"]
    table = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 2) + "---|"]
    for route in chosen:
        cells = [route.name]
        for rows in batches:
            cells += [f"{first[route.name][rows] * 1e3:.0f} ms", f"**{step[route.name][rows] * 1e3:.1f} ms**"]
            cells += [ratio(step, base, route.name, rows) for base in (BASE, UPSTREAM)]
        memory = max(answer["memory"] for rounds in records[route.name].values() for answer in rounds)
        tokens = "its own" if route.same_as is None else f"as {route.same_as}"
        cells += [f"{memory / 1e6:.0f} MB", f"{sizes[route.name] / 1e6:.0f} MB"]
        cells.append("**DIFFERENT**" if route.name in wrong else tokens)
        table.append(f"| {' | '.join(cells)} |")
    used = sorted({part for text in versions.values() for part in text.split(", ")})
    lines = [
        "    .venv/bin/python benchmarks/decode_speed.py",
        "",
        f"{about}; {arguments.threads} thread{'s' * (arguments.threads > 1)} for every route; {', '.join(used)}. "
        f"Medians of {arguments.rounds} rounds of {arguments.new_tokens} tokens each, in which the routes took turns. "
        "Ratios are of the time of a step: 2.00x is twice as fast. Memory is the most held while generating, above "
        "that of the process before it loaded the model.",
        "",
        *table,
        "",
        *reached(batches, step, chosen),
        *(f"- {name}: {text}." for name, text in wrong.items()),
        *(f"- Left out: {name} ({text})." for name, text in left_out.items()),
    ]
    if not wrong:
        lines.append("- Tokens: every route gave those that the last column says, in every round and row.")
    return "\n".join(lines)


def ratio(step: dict, base: str, name: str, rows: str) -> str:
    return f"{step[base][rows] / step[name][rows]:.2f}x" if base in step else ""


def reached(batches: list[str], step: dict, chosen: list[Route]) -> list[str]:
    """Say what the best routes reach against the aims: 2x transformers, and 1.5x PaddleNLP by the eager loop."""
    exact = [r.name for r in chosen if r.name.startswith("PaddleSFT") and (r.same_as == EAGER or r.name == EAGER)]
    all_ours = [r.name for r in chosen if r.name.startswith("PaddleSFT")]
    lines = []
    for rows in batches:
        for kind, names in (("float32", exact), ("any", all_ours)):
            if BASE in step and names:
                best = min(names, key=lambda name: step[name][rows])
                lines.append(
                    f"- Best {kind} route for {rows} row{'s' * (rows != '1')}: {best}, "
                    f"{ratio(step, BASE, best, rows)} transformers (aim: 2x)."
                )
        if UPSTREAM in step and EAGER in step:
            rate = ratio(step, UPSTREAM, EAGER, rows)
            lines.append(f"- Eager loop for {rows} row{'s' * (rows != '1')}: {rate} PaddleNLP's generate (aim: 1.5x).")
    return lines


if __name__ == "__main__":
    sys.exit(main())
