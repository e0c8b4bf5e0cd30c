"""A run of the real model loses what a plain torch + PEFT loop loses, step by step, through the whole of `train`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STEPS, ROWS_PER_STEP = 6, 2
BOUND = 1e-3
FRUITS = ("apples", "pears", "plums", "figs", "limes")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_rows(path: Path) -> Path:
    """Write rows whose prompts and replies differ much in length, one of two turns in four."""
    draw = random.Random(4)
    lines = []
    for i in range(STEPS * ROWS_PER_STEP):
        a, b, fruit = draw.randrange(2, 900), draw.randrange(2, 900), draw.choice(FRUITS)
        messages = [
            {"role": "user", "content": f"Ann has {a} {fruit} and buys {b} more. How many {fruit} has she now?"},
            {"role": "assistant", "content": f"She has {a + b} {fruit}. " + f"{a} plus {b} makes {a + b}. " * (i % 4)},
        ]
        if i % 4 == 0:
            messages += [
                {"role": "user", "content": f"And if she eats {min(a, b)} of them?"},
                {"role": "assistant", "content": f"Then {max(a, b)} are left."},
            ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_first_adapter(base: Path, directory: Path) -> dict[str, np.ndarray]:
    """Write a LoRA directory whose B is not zero, and return its weights by layer name."""
    import paddle

    from paddlesft.config import load_run_config
    from paddlesft.models import load_config, load_model
    from paddlesft.models.families import family_of
    from paddlesft.tuning.lora import add_lora, save_lora

    keys = ["lora=true", "lora_rank=8", "output_dir=x", "train_dataset_path=x", f"model_name_or_path={base}"]
    model_config = load_run_config(None, [*keys, f"lora_target_modules={json.dumps(TARGETS)}"]).model
    paddle.seed(9)
    lora = add_lora(load_model(base), family_of(load_config(base)), model_config)
    weights = {}
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            if name.endswith("lora_B"):
                parameter.set_value(paddle.randn(parameter.shape) * 0.01)
            weights[name[name.index("layers.") :]] = parameter.numpy()
    directory.mkdir()
    save_lora(lora, directory)
    return weights


def run_of_ours(base: Path, tmp_path: Path, *overrides: str) -> tuple[list[dict[str, Any]], Any, list[list[dict]]]:
    """Train through ``paddlesft.training.run`` and return its log, its config and the rows of every step."""
    from paddlesft.config import load_run_config
    from paddlesft.training.events import Observer
    from paddlesft.training.run import train
    from paddlesft.training.run_inputs import read_inputs
    from paddlesft.training.run_log import read_log
    from paddlesft.training.sampling_order import StepSampler

    config = load_run_config(
        None,
        [
            f"model_name_or_path={base}",
            f"train_dataset_path={write_rows(tmp_path / 'rows.jsonl')}",
            f"output_dir={tmp_path / 'run'}",
            "do_train=true",
            "num_train_epochs=1",
            # Two micro-batches of different token counts per step, so that the normalisation is compared as well.
            f"per_device_train_batch_size={ROWS_PER_STEP // 2}",
            "gradient_accumulation_steps=2",
            "logging_steps=1",
            "save_strategy=no",
            "warmup_steps=2",
            "weight_decay=0.01",
            *overrides,
        ],
    )
    train(config)
    log = [record for record in read_log(tmp_path / "run") if record["kind"] == "train"]
    dataset = read_inputs(config, Observer()).datasets["train"]
    order = StepSampler(len(dataset), ROWS_PER_STEP // 2, 2, config.training.seed).steps()
    steps = [
        [{key: [int(t) for t in dataset[int(i)][key]] for key in ("input_ids", "labels")} for i in rows]
        for rows in order
    ]
    return log, config, steps


def losses_of_torch(
    oracle: Callable[..., dict], hf: Path, directory: Path, log, config, steps, **setting
) -> list[float]:
    setting |= {
        "model": str(hf),
        "weight_decay": config.training.weight_decay,
        "max_grad_norm": config.training.max_grad_norm,
        "learning_rates": [record["learning_rate"] for record in log],
        "steps": steps,
    }
    (directory / "setting.json").write_text(json.dumps(setting), encoding="utf-8")
    return oracle("train_losses.py", directory)["losses"]


def assert_same(log: list[dict[str, Any]], theirs: list[float]) -> None:
    ours = [record["loss"] for record in log]
    assert len(ours) == len(theirs) == STEPS
    assert ours[-1] < 0.8 * ours[0], "the run learned too little for the comparison to mean much"
    assert np.abs(np.array(ours) - np.array(theirs)).max() < BOUND, (ours, theirs)


@pytest.fixture(scope="module")
def hugging_face(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from paddlesft.models import write_hugging_face

    return write_hugging_face(smollm2, tmp_path_factory.mktemp("oracle") / "hf")


@pytest.mark.slow
def test_lora_losses(smollm2: Path, hugging_face: Path, oracle: Callable[..., dict], tmp_path: Path) -> None:
    adapter = write_first_adapter(smollm2, tmp_path / "adapter")
    np.savez(tmp_path / "adapter.npz", **adapter)
    overrides = ("lora=true", f"lora_path={tmp_path / 'adapter'}", "learning_rate=2e-3")
    log, config, steps = run_of_ours(smollm2, tmp_path, *overrides)
    lora = {"method": "lora", "rank": 8, "alpha": 16, "targets": TARGETS}
    theirs = losses_of_torch(oracle, hugging_face, tmp_path, log, config, steps, **lora)
    assert_same(log, theirs)


@pytest.mark.slow
def test_full_losses(smollm2: Path, hugging_face: Path, oracle: Callable[..., dict], tmp_path: Path) -> None:
    log, config, steps = run_of_ours(smollm2, tmp_path, "learning_rate=1e-4")
    assert_same(log, losses_of_torch(oracle, hugging_face, tmp_path, log, config, steps, method="full"))
