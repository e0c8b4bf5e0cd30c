"""Checkpoints of real parallel training runs of PaddleNLP's Trainer are merged and have the loss that it had next."""

from __future__ import annotations

import json
from pathlib import Path

import paddle
import pytest

from paddlesft.checkpoints.merge_shards import merge_shards
from paddlesft.models import load_model
from paddlesft.tuning.lora import load_lora
from tests.checkpoints.shards import write_even_family
from tests.parallel.programs.hybrid_training import Rows
from tests.parallel.ranks import launch_well

pytestmark = pytest.mark.slow
LAYOUTS = {
    2: {"tp2": {"tensor_parallel_degree": 2}, "pp2": {"pipeline_parallel_degree": 2}},
    4: {"tp2_pp2": {"tensor_parallel_degree": 2, "pipeline_parallel_degree": 2}},
}
BATCH = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("ranks", LAYOUTS)
def test_the_loss_goes_on(ranks: int, tmp_path: Path) -> None:
    llama = write_even_family("llama", tmp_path / "llama")
    jobs = [
        {"name": name + "_lora" * lora, "model": str(llama), "output": str(tmp_path), "lora": lora,
         "arguments": {**BATCH, **layout}}
        for name, layout in LAYOUTS[ranks].items() for lora in (False, True)
    ]  # fmt: skip
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    launch_well(ranks, "train_and_save.py", tmp_path / "jobs.json", logs=tmp_path / "logs")
    for job in jobs:
        name, merged = job["name"], tmp_path / f"{job['name']}-merged"
        whole = name == "tp2_lora"  # the Trainer merges the ranks of a LoRA without stages itself
        report = merge_shards(tmp_path / name / "checkpoint-2", merged, base=llama, copy_whole=whole)
        assert report.whole == whole and report.kind == ("lora" if job["lora"] else "model")
        model = load_lora(load_model(llama), merged) if job["lora"] else load_model(merged)
        model.eval()
        rows = Rows(model.config.vocab_size)
        loss = model(paddle.to_tensor(rows.inputs[:8]), labels=paddle.to_tensor(rows.labels[:8]))
        loss = float(loss[0] if isinstance(loss, tuple) else loss)
        before, _, after_two_steps = json.loads((tmp_path / f"{name}.json").read_text())
        assert abs(loss - after_two_steps) < 1e-5 and abs(loss - before) > 0.1, name
