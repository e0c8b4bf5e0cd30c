"""Models lie on the ranks as ``Division`` says: what every rank puts is what the first one gathers, under one name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.config.model import ModelConfig
from paddlesft.models import family_of, load_model
from paddlesft.models.families import FAMILIES
from paddlesft.parallel.division import Division
from paddlesft.tuning.lora import add_lora
from tests.checkpoints.shards import write_even_family
from tests.parallel.programs.divisions import known_values
from tests.parallel.ranks import launch_well

pytestmark = pytest.mark.slow
TP, PP = "tensor_parallel_degree", "pipeline_parallel_degree"
DIVIDED = [family.name for family in FAMILIES if family.tensor_parallel]
STAGED = [family.name for family in FAMILIES if family.pipe_class]
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {TP: 2},
    "pp2": {PP: 2},
    "tp2_pp2": {TP: 2, PP: 2},
    "stage3": {"sharding": "stage3"},
}
CASES = [(family, "tp2", method) for family in DIVIDED for method in ("full", "lora")]
CASES += [(family, "pp2", method) for family in STAGED for method in ("full", "lora")]
CASES += [("llama", "tp2", "prefix"), ("llama", "pp2", "prefix"), ("llama", "stage3", "full")]
CASES += [("llama", "stage3", "lora"), ("llama", "stage3", "prefix")]
CASES += [(family, "tp2_pp2", method) for family in ("gemma", "qwen", "chatglm_v2") for method in ("full", "lora")]


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the ranks held and gathered, and the models."""
    root = tmp_path_factory.mktemp("divisions")
    for name in {*DIVIDED, *STAGED}:
        write_even_family(name, root / name)
    for ranks in (2, 4):
        jobs = [
            {"name": f"{family}-{layout}-{method}", "model": str(root / family), "output": str(root),
             "method": method, "arguments": LAYOUTS[layout], "slices": 0 if layout == "stage3" else None}
            for family, layout, method in CASES if (layout == "tp2_pp2") == (ranks == 4)
        ]  # fmt: skip
        (root / f"{ranks}.json").write_text(json.dumps(jobs), encoding="utf-8")
        launch_well(ranks, "divisions.py", root / f"{ranks}.json", logs=root / f"logs{ranks}", seconds=400)
    return root


@pytest.mark.parametrize(("family", "layout", "method"), CASES)
def test_first_rank_gathers_what_all_have_put(family: str, layout: str, method: str, gathered: Path) -> None:
    case = f"{family}-{layout}-{method}"
    with np.load(gathered / f"{case}.npz") as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    for name, array in whole.items():
        np.testing.assert_array_equal(array, known_values(name, array.shape), err_msg=name)
    if method == "prefix":
        assert list(whole) == ["0.weight"]
        return
    model = load_model(gathered / family)
    if method == "lora":
        model = add_lora(model, family_of(model), ModelConfig(lora_rank=4))
    alone = {name: tuple(tensor.shape) for name, tensor in Division(model).own.items()}
    assert {name: array.shape for name, array in whole.items()} == alone
    held = [json.loads(file.read_text()) for file in sorted(gathered.glob(f"{case}.[0-9].json"))]
    numbers = [sum(int(np.prod(shape)) for shape in shapes.values()) for shapes in held]
    assert max(numbers) < sum(array.size for array in whole.values())  # no rank holds all
