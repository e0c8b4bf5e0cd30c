"""The configs whose run is divided among cards: their layouts fit the real models, and CPU ranks train tiny ones.

What is overridden in the runs: model, data, output directory, steps, lengths, device, and degrees, for four ranks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paddlesft.config import RunConfig, load_run_config
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.parallel.check_layout import check_layout
from paddlesft.parallel.estimate import estimate_memory
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.workload import workload_of
from paddlesft.training.run_log import read_log
from tests.families.test_configs import GPU_ONLY, REPO, ROWS, head
from tests.parallel.ranks import launch_well

CONFIGS = {f"{family.name}-{path.stem}": path
           for family in FAMILIES for path in sorted((REPO / "configs" / family.name).glob("*.yaml"))
           if "# what the cards share" in path.read_text(encoding="utf-8")}  # fmt: skip
each_config = pytest.mark.parametrize("path", CONFIGS.values(), ids=CONFIGS)

# sizes of the published config.json files, as far as they are not PaddleNLP's defaults
SIZES: dict[str, dict[str, int]] = {
    "Qwen/Qwen2.5-7B-Instruct": {
        "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "vocab_size": 152064,
    },
    "meta-llama/Llama-2-70b-hf": {
        "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "intermediate_size": 28672,
    },
    "meta-llama/Llama-2-7b-hf": {},
    "bos:qwen/qwen-7b-chat": {},
}  # fmt: skip


def cards(path: Path) -> int:
    """The number of cards in a config's head."""
    title = re.search(r"on (?:(\d+) machines of )?(\d+) cards:$", head(path)[0])
    return int(title[1] or 1) * int(title[2])


def real_layout(path: Path) -> tuple[RunConfig, Layout, dict[str, int]]:
    """The layout for the model that the config names."""
    run = load_run_config(path)
    sizes = SIZES[run.model.model_name_or_path]
    return run, check_layout(run, cards(path), sizes, family_named(path.parent.name)), sizes


def test_the_families_that_are_asked_for_have_a_config_of_each_kind() -> None:
    for family in ("llama", "qwen", "qwen2"):
        assert {f"{family}-sft_{kind}" for kind in ("tp", "pp", "sharding", "2node")} <= set(CONFIGS)


@each_config
def test_the_layout_fits_the_model_and_nothing_is_to_be_said_about_it(path: Path) -> None:
    run, layout, _ = real_layout(path)
    assert layout.notices == ()
    assert layout.world_size == cards(path) and layout.data == 1
    assert [notice for notice in run.notices if not GPU_ONLY.search(notice)] == []
    if layout.pipeline > 1:
        assert run.training.per_device_eval_batch_size == layout.micro_batch * layout.accumulation
    if cards(path) > 8:  # tensor parallelism stays inside a machine, pipeline stages lie on different ones
        assert {len({rank // 8 for rank in group}) for group in layout.groups("tensor")} == {1}
        assert {len({rank // 8 for rank in group}) for group in layout.groups("pipeline")} == {layout.pipeline}


@each_config
def test_the_memory_in_the_head_is_what_the_estimator_says(path: Path) -> None:
    run, layout, sizes = real_layout(path)
    family = family_named(path.parent.name)
    plan = family.plan(sizes)
    names = ("weights", "gradients", "optimizer", "activations", "logits", "total")
    memory = estimate_memory(layout, plan, workload_of(run, family, plan))
    text = "\n".join(head(path))
    rows = re.findall(r"^ {4}(\d+)" + 6 * r" +(\d+\.\d\d)" + "$", text, re.MULTILINE)
    assert rows == [(str(one.stage), *(f"{getattr(one, name) / 1e9:.2f}" for name in names)) for one in memory]
    card = re.search(r"^With 2 GB for CUDA and work space: a card of (\d+) GB\.", text, re.MULTILINE)
    assert max(one.total for one in memory) / 1e9 + 2 <= 0.96 * float(card[1])
    assert f"rows of {run.data.max_length} tokens" in text


@each_config
def test_the_head_shows_the_commands(path: Path) -> None:
    name, number, lines = path.relative_to(REPO).as_posix(), cards(path), head(path)
    if number > 8:
        assert f"    paddlesft train {name}" in lines
        at = lines.index("    python -m paddle.distributed.launch --nnodes 2 --rank 0 --master 10.0.0.1:8765 \\")
        assert lines[at + 1] == f"        llm/finetune.py {name}"
        assert "NNODES=2, RANK=0 or 1, MASTER_ADDR=10.0.0.1 and MASTER_PORT=8765" in " ".join(lines)
    else:
        assert f"    paddlesft train {name} --nproc {number}" in lines
        assert f"    python -m paddle.distributed.launch --nproc_per_node {number} llm/finetune.py {name}" in lines
    for verb in ("layout", "rehearse"):
        assert f"    paddlesft {verb} {name} --world_size {number} --model_config DIRECTORY_OF_THE_MODEL" in lines
    out = load_run_config(path).training.output_dir
    assert out == f"checkpoints/{path.parent.name}_{path.stem}"
    assert any(line.startswith("Then: paddlesft chat") and out in line for line in lines)


def job(path: Path, model: Path, data: Path, out: Path) -> dict[str, Any]:
    """A config with every degree cut to what four ranks have."""
    training, name = load_run_config(path).training, f"{path.parent.name}-{path.stem}"
    degrees = {key: 2 for key in ("tensor_parallel_degree", "pipeline_parallel_degree") if getattr(training, key) > 1}
    if training.sharding:
        degrees["sharding_parallel_degree"] = 4 // 2 ** len(degrees)
    keys = [f"{key}={value}" for key, value in degrees.items()]
    keys += [f"model_name_or_path={model}", f"dataset_name_or_path={data}", f"output_dir={out / name}"]
    keys += ["device=cpu", "max_steps=2", "max_length=128", "src_length=64", "gradient_accumulation_steps=2"]
    return {"name": name, "divided": True, "config": [str(path), *keys]}


@pytest.fixture(scope="module")
def outputs(tiny_family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the output of every config, ``FAMILY-STEM``; one launch of four ranks for all."""
    root = tmp_path_factory.mktemp("divided")
    data = root / "data"
    data.mkdir()
    for name, rows in (("train.json", ROWS), ("dev.json", ROWS[:2])):
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    jobs = [job(path, tiny_family(path.parent.name), data, root) for path in CONFIGS.values()]
    (root / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    launch_well(4, "own_training.py", root / "jobs.json", logs=root / "logs", seconds=400)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_four_ranks_train_the_tiny_model(name: str, outputs: Path) -> None:
    losses = {record["kind"]: record.get("loss", record.get("eval_loss")) for record in read_log(outputs / name)}
    assert losses["train"] > 0 and losses["eval"] > 0
    method = name.split("-")[1].split("_")[0]
    weights = {"sft": "model.safetensors", "lora": "lora_model_state.pdparams"}[method]
    assert (outputs / name / weights).is_file()
