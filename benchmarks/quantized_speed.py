"""What quantized layers cost and save on a CPU: prompt, decoding and memory of SmolLM2-135M-Instruct by format.

    python benchmarks/quantized_speed.py
    python benchmarks/quantized_speed.py --prompt 512 --new-tokens 64 --rounds 9

Every format is loaded as `--weight_quantize_algo` loads it and stays in memory; the formats take turns in every round,
so that whatever else the machine does hits all of them, and medians are compared. Layers keep codes and scales and
dequantize their weight in each call, as a CPU has no kernel that multiplies by them: memory is saved, time is not.
The table goes to the screen and between two markers in docs/quantize.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from pages import write_page  # noqa: E402
from train_speed import machine  # noqa: E402

from paddlesft.inference.eager import EagerRunner  # noqa: E402
from paddlesft.models import resolve_model  # noqa: E402
from paddlesft.models.load import load_model  # noqa: E402
from paddlesft.models.quantized.directory import quantized_layers  # noqa: E402
from paddlesft.models.quantized.formats import WeightFormat  # noqa: E402

BEGIN, END = "<!-- figures of quantized_speed.py -->", "<!-- end of the figures of quantized_speed.py -->"
FORMATS = {
    "float32": None,
    "int8": WeightFormat("int8"),
    "int4": WeightFormat("int4"),
    "int4, groups of 128": WeightFormat("int4", 128),
    "nf4, blocks of 64": WeightFormat("nf4", 64),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens decoded in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="leave docs/quantize.md as it is")
    options = parser.parse_args()
    directory = resolve_model("embedded:smollm2")
    models = {name: load_model(directory, dtype="float32", quantize=how) for name, how in FORMATS.items()}
    ids = np.random.default_rng(0).integers(100, 40000, options.prompt).tolist()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in range(options.rounds + 1):
        for name in list(models) if turn % 2 else list(reversed(models)):
            measured = timed(EagerRunner(models[name]), ids, options.new_tokens)
            if turn:  # the first round warms up
                seconds[name].append(measured)
    base = [statistics.median(one[i] for one in seconds["float32"]) for i in (0, 1)]
    lines = [
        f"| | prompt of {options.prompt} tokens | | decoding | | weights in memory | | of these in linear layers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, model in models.items():
        prompt, token = (statistics.median(one[i] for one in seconds[name]) for i in (0, 1))
        whole, linear = memory_of(model), linears_of(model)
        lines.append(
            f"| {name} | {prompt * 1e3:.0f} ms | {prompt / base[0]:.2f}x | {token * 1e3:.0f} ms per token "
            f"| {token / base[1]:.2f}x | {whole / 1e6:.0f} MB | {whole / memory_of(models['float32']):.0%} "
            f"| {linear / 1e6:.0f} MB |"
        )
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    about = (
        f"    .venv/bin/python benchmarks/quantized_speed.py\n\n{machine()}; {threads} thread{'s' * (threads > 1)}; "
        f"medians of {options.rounds} rounds in which the formats took turns; times and sizes are relative to float32."
    )
    text = "\n".join([about, "", *lines])
    print(text)
    if not options.dry:
        write_page(REPO / "docs" / "quantize.md", text, BEGIN, END)
    return 0


def timed(runner: EagerRunner, ids: list[int], new_tokens: int) -> tuple[float, float]:
    """Return the seconds of a prompt, and those of each token that is decoded after it."""
    begin = time.perf_counter()
    token = runner.prefill([ids]).argmax(axis=-1).numpy()
    first = time.perf_counter()
    for _ in range(new_tokens):
        token = runner.step(token).argmax(axis=-1).numpy()
    return first - begin, (time.perf_counter() - first) / new_tokens


def memory_of(model: Any) -> int:
    """Return the bytes of a model's tensors, shared ones counted once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict().values()}
    return sum(tensor.size * tensor.element_size() for tensor in tensors.values())


def linears_of(model: Any) -> int:
    """Return the bytes of the Linear layers of the decoder."""
    layers = quantized_layers(model) or {
        name: layer for name, layer in model.named_sublayers() if name.endswith("_proj") and hasattr(layer, "weight")
    }
    return sum(memory_of(layer) for layer in layers.values())


if __name__ == "__main__":
    sys.exit(main())
