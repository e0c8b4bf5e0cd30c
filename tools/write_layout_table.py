"""Write the decision table of docs/parallel.md from the estimator: python tools/write_layout_table.py [--check]

With --check nothing is written; the exit code is 1 when the table is not what the estimator says.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from paddlesft.models.families import family_named  # noqa: E402
from paddlesft.parallel.layout import Layout  # noqa: E402
from paddlesft.parallel.suggest import Machine, Suggestion, cost_of, simplest, suggest_layouts  # noqa: E402
from paddlesft.parallel.workload import Workload  # noqa: E402

PAGE = "docs/parallel.md"
BEGIN, END = "<!-- layouts: written by tools/write_layout_table.py -->", "<!-- end of layouts -->"

LENGTH, GLOBAL_BATCH = 4096, 128
MODELS = {  # sizes of the published config.json files
    "Qwen2 0.5B": ("qwen2", {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "tie_word_embeddings": True, "vocab_size": 151936,
    }),
    "LLaMA 2 7B": ("llama", {}),
    "Qwen2 72B": ("qwen2", {
        "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "intermediate_size": 29568, "vocab_size": 152064,
    }),
}  # fmt: skip
LINKS = {"fast": Machine(inside=300e9, between=25e9), "slow": Machine(inside=20e9, between=1.5e9)}
CASES = [
    ("Qwen2 0.5B", "full", (1, 8)),
    ("LLaMA 2 7B", "LoRA", (1, 8, 16)),
    ("LLaMA 2 7B", "full", (1, 8, 16, 64)),
    ("Qwen2 72B", "LoRA", (8, 16)),
    ("Qwen2 72B", "full", (16, 64)),
]


def workload(method: str, targets: tuple[str, ...]) -> Workload:
    """Return bfloat16 training with float32 gradients, flash attention and divided logits."""
    return Workload(
        length=LENGTH, weight_bytes=2, gradient_bytes=4, state_bytes=12, activation_bytes=2, score_bytes=6,
        method=method.lower(), lora_targets=targets, flash_attention=True, divided_logits=True,
    )  # fmt: skip


def keys_of(layout: Layout) -> str:
    """Say a layout shortly."""
    parts = [f"tensor {layout.tensor}"] if layout.tensor > 1 else []
    parts += ["sequence"] if layout.sequence_parallel else []
    parts += [f"pipeline {layout.pipeline}"] if layout.pipeline > 1 else []
    parts += [f"stage{layout.stage} × {layout.sharding}"] if layout.sharding > 1 else []
    parts += [f"data {layout.data}"] if layout.data > 1 else []
    return ", ".join(parts) or "one card"


def kind(one: Suggestion) -> tuple[bool, bool]:
    """Return which axes divide the model itself."""
    return one.layout.tensor > 1, one.layout.pipeline > 1


def moved(one: Suggestion) -> str:
    """Say what a card sends in a step, by axis."""
    return ", ".join(f"{row.axis} {row.bytes / 1e9:,.1f}" for row in one.traffic) or "–"


def reason(chosen: Suggestion, found: list[Suggestion], alone: Suggestion, machine: Machine) -> str:
    """Say why: what data parallelism alone would need, and what the best layout of another kind costs."""
    size = alone.memory.total / 1e9
    fits = size <= machine.memory / 1e9
    texts = [f"a whole copy fits ({size:.0f} GB)" if fits else f"a whole copy needs {size:,.0f} GB a card"]
    if chosen.layout.world_size > 1:
        share = chosen.sending_seconds / chosen.seconds
        texts.append(f"sending takes {share:.0%} of the step" if share >= 0.005 else "hardly anything is sent")
        other = next((one for one in found if kind(one) != kind(chosen)), None)
        if other:
            texts.append(f"{keys_of(other.layout)}: {other.seconds / chosen.seconds:.2f} × the time")
    return "; ".join(texts)


def cells_of(found: list[Suggestion], alone: Suggestion, machine: Machine) -> list[str]:
    """Return layout, recompute, memory, traffic and reason of a row."""
    if not found:
        return ["does not fit", "", "", "", f"a whole copy needs {alone.memory.total / 1e9:,.0f} GB a card"]
    one = simplest(found)
    recompute = "full" if one.work.recompute == "full" else "off"
    memory = f"{one.memory.total / 1e9:.0f}"
    return [keys_of(one.layout), recompute, memory, moved(one), reason(one, found, alone, machine)]


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        "| model | method | cards | links | layout | recompute | GB a card | GB a card sends in a step | why |",
        "|---|---|---:|---|---|---|---:|---|---|",
    ]
    for model, method, sizes in CASES:
        name, config = MODELS[model]
        family = family_named(name)
        plan = family.plan(config)
        work = workload(method, family.lora_target_modules)
        for cards in sizes:
            for links, machine in LINKS.items():
                found = suggest_layouts(plan, family, work, cards, GLOBAL_BATCH, machine)
                data = Layout(data=cards, accumulation=GLOBAL_BATCH // cards, layers=plan.layers)
                alone = cost_of(data, plan, replace(work, recompute="full"), machine)
                everywhere = cards == 1 or not found  # links do not matter
                cells = cells_of(found, alone, machine)
                lines.append(
                    "| " + " | ".join([model, method, str(cards), "any" if everywhere else links, *cells]) + " |"
                )
                if everywhere:
                    break
    return "\n".join(lines)


def with_table(text: str) -> str:
    """Return the page's text with the table between its marks renewed.

    Raises:
        ValueError: the marks are missing.
    """
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?(\n{re.escape(END)})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{PAGE} has no place for the table: lines {BEGIN} and {END}")
    return pattern.sub(lambda match: match[1] + table() + match[2], text)


def main(argv: list[str] | None = None) -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the table is out of date")
    check = parser.parse_args(argv).check
    path = REPO / PAGE
    text = path.read_text(encoding="utf-8")
    renewed = with_table(text)
    if not check:
        path.write_text(renewed, encoding="utf-8")
        print(f"{PAGE}: written")
    elif renewed != text:
        print(f"{PAGE}: the table of layouts is out of date. Run: python tools/write_layout_table.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
