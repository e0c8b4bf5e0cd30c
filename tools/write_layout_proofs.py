"""Write the table of proven layouts of docs/parallel.md from the tests' cases: tools/write_layout_proofs.py [--check]

With --check nothing is written; the exit code is 1 when the table is not what the tests compare.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from tests.parallel import (  # noqa: E402
    test_adapter_training,
    test_own_training,
    test_pipeline_training,
    test_tensor_training,
)
from tests.parallel.test_gloo_training import PP, SP, TP  # noqa: E402

PAGE = "docs/parallel.md"
BEGIN, END = "<!-- proofs: written by tools/write_layout_proofs.py -->", "<!-- end of proofs -->"
TESTS = (test_own_training, test_tensor_training, test_adapter_training, test_pipeline_training)
MARKS = "¹²³⁴⁵"
METHODS = {"full": "all weights", "lora": "LoRA", "prefix": "Prefix-Tuning"}


class Proof(NamedTuple):
    """One comparison with a single process: which model family, method and layout, in which test."""

    test: int
    family: str
    method: str
    layout: str
    packed: bool


def proofs() -> Iterator[Proof]:
    """Yield what the tests compare."""
    for kind, layout in test_own_training.CASES:
        family, method, *more = kind.split()
        if "bad" not in more:
            yield Proof(0, family, method, layout, "packed" in more)
    for name, kind in test_tensor_training.CASES:
        shared = len(test_tensor_training.degrees(name, kind)) > 1
        yield Proof(1, test_tensor_training.MODELS[name].name, "full", "tp2 sp" if shared else "tp2", kind == "packed")
    for case in test_adapter_training.CASES:
        method = "prefix" if case.method == "projected" else case.method
        family = re.split(r"[/ -]", case.family)[0]
        yield Proof(2, family, method, case.layout, test_adapter_training.PACKED[0] in case.more)
    for model, method, more, keys, _ in (case for cases in test_pipeline_training.CASES.values() for case in cases):
        family = "llama" if model == "tied" else model
        yield Proof(3, family, method, layout_of(keys), "packed" in more)


def layout_of(keys: Mapping[str, Any]) -> str:
    """Name the layout that keys of a config ask for, as the tests do."""
    parts = [
        f"tp{keys[TP]}" if TP in keys else "",
        "sp" if keys.get(SP) else "",
        f"pp{keys[PP]}" if PP in keys else "",
        f"chunks{keys['virtual_pp_degree']}" if "virtual_pp_degree" in keys else "",
    ]
    return " ".join(filter(None, parts))


def said(layout: str) -> str:
    """``tp2 sp`` in words."""
    names = {"dp": "data", "tp": "tensor", "pp": "pipeline", "stage": "stage"}
    words = []
    for part in layout.split():
        kind, degree = re.fullmatch(r"([a-z]+)(\d*)", part).groups()
        if kind == "sp":
            words[-1] += " with sequence parallel"
        elif kind == "chunks":
            words[-1] += f" in {degree} chunks each"
        else:
            words.append(f"{names[kind]}{degree} × 2" if kind == "stage" else f"{names[kind]} {degree}")
    return ", ".join(words)


def cell(found: list[Proof]) -> str:
    """The families of a cell, behind those of each test its mark; a star where rows are packed too."""
    groups = []
    for test in sorted({proof.test for proof in found}):
        packed = {proof.family: False for proof in found if proof.test == test}
        packed |= {proof.family: True for proof in found if proof.test == test and proof.packed}
        groups.append(", ".join(f"{family}{'*' * star}" for family, star in packed.items()) + f" {MARKS[test]}")
    return "; ".join(groups)


def table() -> str:
    """Return the table in Markdown, simple layouts first."""
    every = list(proofs())
    order = list(test_own_training.LAYOUTS)
    layouts = sorted(
        sorted({proof.layout for proof in every}),  # else equal keys stand in the order of a set
        key=lambda name: (len(name.replace(" sp", "").split()), order.index(name) if name in order else len(order)),
    )
    lines = ["| layout | " + " | ".join(METHODS.values()) + " |", "|---|" + "---|" * len(METHODS)]
    for layout in layouts:
        cells = [cell([p for p in every if (p.layout, p.method) == (layout, method)]) for method in METHODS]
        lines.append("| " + " | ".join([said(layout), *cells]) + " |")
    files = ", ".join(f"{mark} `{test.__name__.replace('.', '/')}.py`" for mark, test in zip(MARKS, TESTS))
    return "\n".join([*lines, "", f"{files}. A star: packed rows too."])


def main(argv: list[str] | None = None) -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the table is out of date")
    check = parser.parse_args(argv).check
    path = REPO / PAGE
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?(\n{re.escape(END)})", re.DOTALL)
    renewed = pattern.sub(lambda match: match[1] + table() + match[2], text)
    if check and renewed != text:
        print(f"{PAGE}: the table of proven layouts is out of date. Run: python tools/write_layout_proofs.py")
    elif not check:
        path.write_text(renewed, encoding="utf-8")
        print(f"{PAGE}: {len(list(proofs()))} comparisons")
    return int(check and renewed != text)


if __name__ == "__main__":
    sys.exit(main())
