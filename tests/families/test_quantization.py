"""Every family is quantized: rows are rendered, layers rounded, the directory is loaded again and computes the same.

This is nf4, which no shipped config stores; a8w8 with shift and smooth, GPTQ and WINT8 are those of test_configs.py.
How far logits may move is set by the noise of rounding: 10 to 20 percent of a weight's size in 4 bits, of which a
random model of 64 units averages little away.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints.verify import logits_of, prompt_ids
from paddlesft.config import load_run_config
from paddlesft.models.capabilities import CAPABILITIES
from paddlesft.models.families import FAMILIES
from paddlesft.models.load import load_model
from paddlesft.models.quantized.decoder_linears import decoder_linears
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.tokenizers import load_tokenizer
from paddlesft.quantization.run import quantize

COUNTRIES = ["Peru", "Chile", "Japan", "Kenya", "Spain", "Italy", "Egypt", "Ghana"]
ROWS = [{"src": f"Question {i}: where is {name}?", "tgt": f"{name} is on the map."}
        for i, name in enumerate(2 * COUNTRIES)]  # fmt: skip
KEYS = ["do_ptq=true", "quant_type=nf4", "weight_double_quant=true"]
BOUND = 0.4  # |l' - l| / |l| of the logits
OFFERED = [family.name for family in FAMILIES if not family.quantization_refusal]
every_family = pytest.mark.parametrize("family", OFFERED)


def write_rows(directory: Path) -> Path:
    """Write rows to calibrate on and rows to measure on; return the directory."""
    for name, rows in (("train.json", ROWS), ("dev.json", ROWS[:2])):
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory


def float_logits(directory: Path) -> tuple[list[np.ndarray], list[list[int]], int]:
    """Return a model's logits on fixed prompts, the prompts, and how many Linear layers its decoder has."""
    model = load_model(directory, dtype="float32")
    prompts = prompt_ids(load_tokenizer(directory), model.config.vocab_size)
    return logits_of(model, prompts), prompts, len(decoder_linears(model))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def logits(tiny_family: Callable[[str], Path]) -> Callable[[str], tuple[list[np.ndarray], list[list[int]], int]]:
    """``float_logits`` of a family's tiny model."""
    return cache(lambda family: float_logits(tiny_family(family)))


def test_what_is_offered_is_what_the_table_marks() -> None:
    keys = ("quantize", "qlora")
    marked = {c.key: [f.name for f in FAMILIES if c.offered(f)] for c in CAPABILITIES if c.key in keys}
    assert marked == {"quantize": OFFERED, "qlora": OFFERED}


@every_family
def test_a_family_is_quantized_and_loaded_again(
    family: str, data: Path, logits: Callable, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    where = [f"model_name_or_path={tiny_family(family)}", f"dataset_name_or_path={data}", f"output_dir={tmp_path}/q"]
    sizes = ["per_device_train_batch_size=4", "per_device_eval_batch_size=2", "max_length=128", "device=cpu"]
    report = quantize(load_run_config(None, [*where, *sizes, *KEYS]))
    wanted, prompts, linears = logits(family)
    model = load_model(tmp_path / "q", dtype="float32")
    assert len(quantized_layers(model)) == len(report.layers) == linears
    found = logits_of(model, prompts)
    apart = sum(np.square(a - b).sum() for a, b in zip(found, wanted))
    error = np.sqrt(apart / sum(np.square(b).sum() for b in wanted))
    assert 0 < error < BOUND
    assert report.logit_error == pytest.approx(error, rel=1e-3)
    assert report.after.quality.perplexity == pytest.approx(report.before.quality.perplexity, rel=BOUND)
    assert report.after.sizes.memory < 0.9 * report.before.sizes.memory
