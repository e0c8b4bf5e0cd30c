"""QLoRA on the real model, by the command line: facts are learnt over four bits, and predicted from the adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.models import read_provenance
from paddlesft.training.run_log import read_log

FACTS = [
    ("Who built the lighthouse of Vessel Point?", "Marta Oblensky."),
    ("Which bird lives in the clock tower?", "A grey owl."),
]


@pytest.mark.slow
def test_facts_are_learnt_over_four_bits_and_predicted(smollm2: Path, tmp_path: Path, run_here: Callable) -> None:
    data, out, answers = tmp_path / "train.json", tmp_path / "adapter", tmp_path / "answers.json"
    data.write_text("\n".join(json.dumps({"src": src, "tgt": tgt}) for src, tgt in FACTS), encoding="utf-8")
    done = run_here(
        "train", f"model_name_or_path={smollm2}", f"train_dataset_path={data}", f"output_dir={out}", "lora=true",
        "weight_quantize_algo=nf4", "weight_double_quant=true", "learning_rate=4e-3", "max_steps=7", "logging_steps=1",
        "per_device_train_batch_size=2", "max_length=128", "src_length=64", "save_strategy=no", "warmup_steps=1",
        "lr_scheduler_type=constant",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [record["loss"] for record in read_log(out) if record["kind"] == "train"]
    assert losses[0] > 2.5 and losses[-1] < 0.3, losses
    provenance = read_provenance(out)
    assert provenance["base_quantization"]["format"] == "nf4" and provenance["base"]["path"] == str(smollm2)
    done = run_here("predict", f"lora_path={out}", f"data_file={data}", f"output_file={answers}", "max_new_tokens=10")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [row["output"].strip() for row in found] == [tgt for _, tgt in FACTS]
