"""Every family is quantized: rows are rendered, layers rounded, the directory is loaded again and computes the same.

The mark "quantize" stands on this; "QLoRA" on test_configs.py and tests/tuning/test_quantized_lora.py. How far logits
may move is set by the noise of rounding: 2 to 3 percent of a weight's size in 8 bits, 10 to 20 in 4, of which a random
model of 64 units averages little away.
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
SMOOTH = ["shift=true", "shift_all_linears=true", "smooth=true", "smooth_all_linears=true"]
KINDS = {  # keys, and how far the logits may be from the float model's, |l' - l| / |l|
    "a8w8": (["do_ptq=true", "quant_type=a8w8", "ptq_step=2", "shift_step=2", "smooth_step=2", *SMOOTH], 0.3),
    "gptq": (["do_gptq=true", "quant_type=weight_only_int4", "gptq_step=2", "group_size=32"], 0.55),
    "wint8": (["do_ptq=true", "quant_type=weight_only_int8"], 0.03),
    "nf4": (["do_ptq=true", "quant_type=nf4", "weight_double_quant=true"], 0.4),
}
OFFERED = [family.name for family in FAMILIES if not family.quantization_refusal]
by_all_ways = pytest.mark.parametrize(("family", "kind"), [(name, kind) for name in OFFERED for kind in KINDS])


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


@by_all_ways
def test_a_family_is_quantized_and_loaded_again(
    family: str, kind: str, data: Path, logits: Callable, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    keys, bound = KINDS[kind]
    where = [f"model_name_or_path={tiny_family(family)}", f"dataset_name_or_path={data}", f"output_dir={tmp_path}/q"]
    sizes = ["per_device_train_batch_size=4", "per_device_eval_batch_size=2", "max_length=128", "device=cpu"]
    report = quantize(load_run_config(None, [*where, *sizes, *keys]))
    wanted, prompts, linears = logits(family)
    model = load_model(tmp_path / "q", dtype="float32")
    assert len(quantized_layers(model)) == len(report.layers) == linears
    found = logits_of(model, prompts)
    apart = sum(np.square(a - b).sum() for a, b in zip(found, wanted))
    error = np.sqrt(apart / sum(np.square(b).sum() for b in wanted))
    assert 0 < error < bound
    assert report.logit_error == pytest.approx(error, rel=1e-3)
    assert report.after.quality.perplexity == pytest.approx(report.before.quality.perplexity, rel=max(bound, 0.1))
    assert report.after.sizes.memory < 0.9 * report.before.sizes.memory
