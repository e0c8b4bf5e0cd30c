"""Training speed on CPU: one step of PaddleSFT against one of torch + transformers + PEFT.

    .venv/bin/python benchmarks/train_speed.py                       # LoRA, 1 thread, then all cores
    .venv/bin/python benchmarks/train_speed.py --threads 2 --method full

Both sides get the same model, initial adapter, batch and threads, in float32, and live at the same time in processes of
their own that step in turn, so that whatever else the machine does hits both. The torch side is used as its
documentation has it: ``model(input_ids, attention_mask, labels)``, sdpa attention, ``torch.optim.AdamW``. A step is
forward, backward and AdamW on one right-padded batch whose rows are 70 to 100 % full and whose second halves are
trained, as in supervised fine-tuning. Tokens per second count every position of the batch. The exit code is 1 when the
losses differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(Path(__file__).parent / "workers")]

from pipe import Worker  # noqa: E402

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 8, 16
LEARNING_RATES = {"lora": 1e-3, "full": 1e-5}
LOSS_BOUND = 1e-3
FILLINGS = (1.0, 0.9, 0.8, 0.7)


def main() -> int:
    arguments = parse()
    from paddlesft.models import load_config, resolve_model, write_hugging_face

    model = resolve_model(arguments.model)
    config = load_config(model)
    print(machine())
    failed = False
    with tempfile.TemporaryDirectory(prefix="train-speed-") as scratch:
        directory = Path(scratch)
        torch_model = write_hugging_face(model, directory / "torch-model")
        setting = {
            "model": str(model),
            "torch_model": str(torch_model),
            "method": arguments.method,
            "rank": RANK,
            "alpha": ALPHA,
            "targets": list(TARGETS),
            "learning_rate": LEARNING_RATES[arguments.method],
            "weight_decay": 0.01,
            "products": product_shapes(config, arguments.batch * arguments.sequence),
        }
        (directory / "setting.json").write_text(json.dumps(setting), encoding="utf-8")
        write_adapter(directory / "adapter.npz", config)
        batch = write_batch(directory / "batch.npz", model, arguments.batch, arguments.sequence)
        print(
            f"Model {arguments.model}, {arguments.method}, float32, batch {arguments.batch} x {arguments.sequence}: "
            f"{int(batch['attention_mask'].sum())} of {batch['input_ids'].size} positions hold tokens, "
            f"{trained_positions(batch)} are trained."
        )
        for threads in arguments.threads:
            failed |= not compare(directory, arguments, config, batch, threads)
    return int(failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--model", default="embedded:smollm2", help="model directory or name")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help="one run per number")
    parser.add_argument("--batch", type=int, default=4, help="rows of the batch")
    parser.add_argument("--sequence", type=int, default=128, help="positions of a row")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each side")
    parser.add_argument("--warmup", type=int, default=3, help="steps before, whose losses count and whose times do not")
    parser.add_argument("--method", choices=("lora", "full"), default="lora", help="what is trained")
    parser.add_argument("--torch-python", default=str(REPO / ".venv-oracle" / "bin" / "python"), help="torch's python")
    arguments = parser.parse_args()
    if not Path(arguments.torch_python).exists():
        parser.error(f"{arguments.torch_python} is missing; `make .venv-oracle/.installed` makes it")
    return arguments


def compare(directory: Path, arguments: argparse.Namespace, config: Any, batch: dict, threads: int) -> bool:
    """Step both sides in turn, print the result and return whether the losses are equal."""
    environ = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "GLOG_minloglevel": "2"}
    workers = Path(__file__).parent / "workers"
    ours = Worker(
        sys.executable,
        workers / "paddle_step.py",
        [str(directory)],
        environ | {"PYTHONPATH": str(REPO)},
        directory / "paddle.log",
    )
    theirs = Worker(
        arguments.torch_python, workers / "torch_step.py", [str(directory)], environ, directory / "torch.log"
    )
    sides = {"PaddleSFT": ours, "torch": theirs}
    print(f"\n{threads} thread{'s' if threads > 1 else ''}")
    for name, worker in sides.items():
        ready = worker.read()
        print(f"  {name}: {ready['versions']}; {ready['about']}; {ready['trained']:,} trained parameters")
    products = ours.ask("products")
    records: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for step in range(arguments.warmup + arguments.steps):
        order = list(sides) if step % 2 == 0 else list(reversed(sides))
        for name in order:
            records[name].append(sides[name].ask("step"))
    for name, speed in ours.ask("products").items():
        products[name] = max(speed, products[name])
    operators = ours.ask("operators")
    for worker in sides.values():
        worker.close()
    report(arguments, config, batch, records, products)
    print_operators(operators)
    difference = max(abs(a["loss"] - b["loss"]) for a, b in zip(*records.values()))
    equal = difference <= LOSS_BOUND
    first, last = (records["PaddleSFT"][i]["loss"] for i in (0, -1))
    verdict = "equal" if equal else "DIFFERENT"
    print(f"  Losses {first:.6f} -> {last:.6f}: {verdict}; largest difference {difference:.1e}, bound {LOSS_BOUND:.0e}")
    return equal


def report(arguments: argparse.Namespace, config: Any, batch: dict, records: dict, products: dict[str, float]) -> None:
    tokens = batch["input_ids"].size
    work = step_gflop(config, batch, arguments.method)
    peak = max(products.values())
    print(
        f"  {'':10}{'s/step':>9}{'min':>9}{'max':>9}{'CPU s':>9}{'tokens/s':>11}{'GFLOP/s':>9}{'of peak':>9}{'GB':>7}"
    )
    medians = {}
    for name, steps in records.items():
        seconds = [step["seconds"] for step in steps[arguments.warmup :]]
        processor = statistics.median(step["processor_seconds"] for step in steps[arguments.warmup :])
        medians[name] = statistics.median(seconds)
        speed = work / medians[name]
        print(
            f"  {name:10}{medians[name]:9.3f}{min(seconds):9.3f}{max(seconds):9.3f}{processor:9.3f}"
            f"{tokens / medians[name]:11.1f}{speed:9.1f}{speed / peak:9.0%}{steps[-1]['memory_gb']:7.2f}"
        )
    pairs = [b["seconds"] / a["seconds"] for a, b in zip(*(steps[arguments.warmup :] for steps in records.values()))]
    ratio = medians["torch"] / medians["PaddleSFT"]
    print(
        f"  PaddleSFT is {ratio:.2f}x torch (medians of {arguments.steps} steps each; step by step "
        f"{min(pairs):.2f}x to {max(pairs):.2f}x)"
    )
    speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in products.items())
    print(f"  Matrix products of this model's shapes reach, in GFLOP/s: {speeds}. A step needs {work:.0f} GFLOP.")


def print_operators(operators: dict[str, Any]) -> None:
    """Print where PaddleSFT's time goes, measured in a few steps more."""
    total = operators["seconds"]
    shares = sorted(operators["kinds"].items(), key=lambda item: -item[1])
    print("  PaddleSFT's time: " + ", ".join(f"{kind} {seconds / total:.0%}" for kind, seconds in shares))


def step_gflop(config: Any, batch: dict, method: str) -> float:
    """Count the arithmetic that a step needs, in 1e9 operations; 2 per multiply and add.

    A linear layer of size p costs 2p per position forward and 2p for its input's gradient; 2p more for its own gradient
    where it is trained. Attention costs 4·s·h per position and layer (scores and mixture, masked entries included),
    twice that backward. The head counts at trained positions only, for both sides: the rest is not needed. LoRA's
    matrices cost 6 r (i + o) per position. Norms, activations and the optimizer are left out.
    """
    h, m, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv = h // config.num_attention_heads * config.num_key_value_heads
    positions, length = batch["input_ids"].size, batch["input_ids"].shape[1]
    sizes = [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]
    passes = 3 if method == "full" else 2
    linear = 2 * passes * layers * sum(i * o for i, o in sizes) * positions
    adapter = 6 * RANK * layers * sum(i + o for i, o in sizes) * positions if method == "lora" else 0
    attention = 12 * length * h * layers * positions
    head = 2 * passes * h * config.vocab_size * trained_positions(batch)
    return 1e-9 * (linear + adapter + attention + head)


def trained_positions(batch: dict) -> int:
    """Count the positions whose next token is trained."""
    return int((batch["labels"][:, 1:] != -100).sum())


def product_shapes(config: Any, rows: int) -> list[list[int]]:
    """Return the [m, k, n] of the model's larger matrix products on ``rows`` positions."""
    h, m = config.hidden_size, config.intermediate_size
    return [[rows, h, h], [rows, h, m], [rows, m, h]]


def write_batch(path: Path, model: Path, rows: int, length: int) -> dict[str, np.ndarray]:
    """Write a right-padded batch of arithmetic exercises; the second half of each row is trained."""
    from paddlesft.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    draw = np.random.default_rng(0)
    pad = tokenizer.pad_token_id or 0
    ids = np.full([rows, length], pad, dtype="int64")
    labels = np.full([rows, length], -100, dtype="int64")
    mask = np.zeros([rows, length], dtype="int64")
    for row in range(rows):
        used = max(4, int(length * FILLINGS[row % len(FILLINGS)]))
        text = ""
        while len(tokens := tokenizer(text, add_special_tokens=False)["input_ids"]) < used:
            a, b = (int(n) for n in draw.integers(2, 900, 2))
            text += f"Ann has {a} apples and buys {b} more. How many apples has she now? She has {a + b} apples.\n"
        ids[row, :used] = tokens[:used]
        mask[row, :used] = 1
        labels[row, used // 2 : used] = tokens[used // 2 : used]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    np.savez(path, **batch)
    return batch


def write_adapter(path: Path, config: Any) -> None:
    """Write LoRA's initial weights: A [i, r] uniform as Kaiming's rule has it, B [r, o] zero."""
    h, m = config.hidden_size, config.intermediate_size
    kv = h // config.num_attention_heads * config.num_key_value_heads
    sizes = dict(zip(TARGETS, [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]))
    draw = np.random.default_rng(1)
    arrays = {}
    for layer in range(config.num_hidden_layers):
        for name, (i, o) in sizes.items():
            block = "self_attn" if name in TARGETS[:4] else "mlp"
            key = f"layers.{layer}.{block}.{name}"
            arrays[f"{key}.lora_A"] = draw.uniform(-1, 1, [i, RANK]).astype("float32") / np.float32(np.sqrt(i))
            arrays[f"{key}.lora_B"] = np.zeros([RANK, o], dtype="float32")
    np.savez(path, **arrays)


def machine() -> str:
    """Describe the machine in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
            if ":" in line
        )
        vectors = (
            "AVX-512" if "avx512f" in fields.get("flags", "") else "AVX2" if "avx2" in fields.get("flags", "") else ""
        )
        family = f"family {fields.get('cpu family')} model {fields.get('model')}"
        name = f"{fields.get('model name', name)} ({family}{', ' + vectors if vectors else ''})"
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"Machine: {name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}{load}"


if __name__ == "__main__":
    sys.exit(main())
