"""Memory and speed of QLoRA against LoRA on CPU.

    .venv/bin/python benchmarks/qlora_memory.py                 # prints the table
    .venv/bin/python benchmarks/qlora_memory.py --write         # and puts it into docs/qlora.md

Every kind of base has a process of its own; all of them live at the same time and step in turn on the same batch, so
that whatever else the machine does hits all. Memory is what the operating system counts: after loading and at the peak,
without what the process had before it loaded (its libraries). Weights are counted by their bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(Path(__file__).parent), str(Path(__file__).parent / "workers")]

from pipe import Worker  # noqa: E402
from train_speed import machine, write_batch  # noqa: E402

PAGE = REPO / "docs" / "qlora.md"
BEGIN, END = "<!-- written by benchmarks/qlora_memory.py -->", "<!-- end of what qlora_memory.py writes -->"
KINDS = {  # what the table calls it -> weight_quantize_algo, weight_double_quant
    "LoRA, float32": ("none", "false"),
    "QLoRA, nf4": ("nf4", "false"),
    "QLoRA, nf4, double quantization": ("nf4", "true"),
    "QLoRA, weight_only_int8": ("weight_only_int8", "false"),
}
MIB = 2**20


def main() -> int:
    """Measure, print, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="embedded:smollm2", help="model directory or name")
    parser.add_argument("--batch", type=int, default=2, help="rows of the batch")
    parser.add_argument("--sequence", type=int, default=128, help="positions of a row")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of each kind")
    parser.add_argument("--warmup", type=int, default=2, help="steps before")
    parser.add_argument("--write", action="store_true", help="put the table into docs/qlora.md")
    options = parser.parse_args()
    from paddlesft.models import resolve_model
    from paddlesft.models.load import paddle_directory

    model = paddle_directory(resolve_model(options.model))  # converted once, here
    command = "python benchmarks/qlora_memory.py " + " ".join(
        f"--{key} {getattr(options, key)}" for key in ("model", "batch", "sequence", "steps")
    )
    head = [machine() + ", 1 thread", f"Command: {command}"]
    with tempfile.TemporaryDirectory(prefix="qlora-memory-") as scratch:
        directory = Path(scratch)
        (directory / "setting.json").write_text(json.dumps({"model": str(model)}), encoding="utf-8")
        write_batch(directory / "batch.npz", model, options.batch, options.sequence)
        rows = measure(directory, options.steps, options.warmup)
    libraries = next(iter(rows.values()))["before"]
    head.append(f"Libraries, left out below: {libraries / MIB:,.0f} MiB")
    table = lines_of(rows)
    print("\n".join([*head, "", *table]))
    if options.write:
        put(PAGE, [*[f"    {line}" for line in head], "", *table])
    return 0


def measure(directory: Path, steps: int, warmup: int) -> dict[str, dict[str, Any]]:
    """Step all kinds in turn and return what was found for each."""
    environ = {"OMP_NUM_THREADS": "1", "GLOG_minloglevel": "2", "PYTHONPATH": str(REPO)}
    script = Path(__file__).parent / "workers" / "qlora_step.py"
    workers = {
        name: Worker(sys.executable, script, [str(directory), *kind], environ, directory / f"{i}.log")
        for i, (name, kind) in enumerate(KINDS.items())
    }
    found = {name: worker.read() | {"steps": []} for name, worker in workers.items()}
    for _ in range(warmup + steps):
        for name, worker in workers.items():
            found[name]["steps"].append(worker.ask("step"))
    for name, worker in workers.items():
        worker.close()
        records = found[name]["steps"]
        found[name]["seconds"] = statistics.median(record["seconds"] for record in records[warmup:])
        found[name]["peak"] = records[-1]["memory_gb"] * 1e9
        found[name]["losses"] = [record["loss"] for record in records]
    return found


def lines_of(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table: each figure, and its ratio to LoRA's."""
    first = next(iter(found.values()))
    lines = [
        "| base | weights, MiB | loaded, MiB | peak, MiB | ms per step | loss, first to last step |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        held, of_first = row["loaded"] - row["before"], first["loaded"] - first["before"]
        cells = [
            (row["weights"] / MIB, row["weights"] / first["weights"]),
            (held / MIB, held / of_first),
            ((row["peak"] - row["before"]) / MIB, (row["peak"] - row["before"]) / (first["peak"] - first["before"])),
            (row["seconds"] * 1000, row["seconds"] / first["seconds"]),
        ]
        shown = [f"{value:,.0f} ({ratio:.2f}x)" for value, ratio in cells]
        lines.append(f"| {name} | {' | '.join(shown)} | {row['losses'][0]:.4f} to {row['losses'][-1]:.4f} |")
    return lines


def put(page: Path, lines: list[str]) -> None:
    """Replace what stands between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    scratch = page.with_suffix(".new")
    scratch.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]), encoding="utf-8")
    os.replace(scratch, page)


if __name__ == "__main__":
    sys.exit(main())
