"""Rows for tests of quantization, and configs that name them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from paddlesft.config import RunConfig, load_run_config

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "drink",
    "green",
    "tea",
    "in",
    "old",
    "boxes",
]


def write_rows(path: Path, count: int, start: int = 0, words: int = 8) -> Path:
    """Write ``count`` questions and answers, all different."""
    lines = []
    for i in range(start, start + count):
        text = " ".join(WORDS[(i * 7 + k * (i % 5 + 1)) % len(WORDS)] for k in range(words))
        lines.append(json.dumps({"src": f"Question {i}: {text}?", "tgt": f"Answer {i}: {text}."}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def quantization_config(model: Path | str, output: Path, *overrides: str, data: Path | None = None) -> RunConfig:
    """A config that quantizes a tiny model."""
    return load_run_config(None, [*quantization_keys(model, output, data=data), *overrides])


def quantization_keys(model: Path | str, output: Path, data: Path | None = None) -> Sequence[str]:
    """The same as arguments."""
    keys = [f"model_name_or_path={model}", f"output_dir={output}", "do_ptq=true", "device=cpu", "max_length=64"]
    keys += ["src_length=32", "per_device_train_batch_size=2", "per_device_eval_batch_size=4"]
    return keys if data is None else [*keys, f"dataset_name_or_path={data}"]
