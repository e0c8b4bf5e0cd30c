"""One training step of PaddleSFT through its public parts: load, add LoRA, accelerate, supervised_loss, AdamW.

Argument: the setting directory written by train_speed.py.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from operator_times import operator_times
from pipe import serve, timed

import paddlesft  # noqa: F401  (prepares the environment before paddle is imported)


def main(directory: Path) -> None:
    import paddle

    from paddlesft.models import load_model
    from paddlesft.models.fast import accelerate
    from paddlesft.training.loss import supervised_loss
    from paddlesft.tuning.prepare import prepare_for_tuning

    setting = json.loads((directory / "setting.json").read_text(encoding="utf-8"))
    model = load_model(setting["model"], dtype="float32", for_training=True)
    swapped = accelerate(model)
    model = prepare_for_tuning(model, run_config(setting))
    if setting["method"] == "lora":
        with np.load(directory / "adapter.npz") as adapter:
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.set_value(adapter[name[name.index("layers.") :]])
    model.train()
    trained = [p for p in model.parameters() if not p.stop_gradient]
    optimizer = paddle.optimizer.AdamW(
        setting["learning_rate"], parameters=trained, weight_decay=setting["weight_decay"]
    )
    with np.load(directory / "batch.npz") as arrays:
        batch = {name: arrays[name] for name in ("input_ids", "attention_mask")}
        # transformers shifts inside the model; PaddleSFT's labels are shifted in the data.
        labels = arrays["labels"]
        batch["labels"] = np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], -100)], axis=1)

    def step() -> float:
        summed, count = supervised_loss(model, batch)
        loss = summed / count
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss)

    ready = {
        "versions": f"paddlepaddle {paddle.__version__}",
        "about": f"accelerated: {', '.join(swapped) or 'nothing'}",
        "trained": sum(int(np.prod(p.shape)) for p in trained),
    }
    commands = {
        "step": lambda: timed(step),
        "products": lambda: product_speeds(setting["products"]),
        "operators": lambda: operator_times(step),
    }
    serve(ready, commands)


def run_config(setting: dict):
    """Return the resolved config of a run with this setting."""
    from paddlesft.config import load_run_config

    keys = {"model_name_or_path": setting["model"], "output_dir": "unused", "train_dataset_path": "unused"}
    if setting["method"] == "lora":
        keys |= {"lora": True, "lora_rank": setting["rank"], "lora_alpha": setting["alpha"]}
        keys |= {"lora_target_modules": json.dumps(setting["targets"])}
    return load_run_config(None, [f"{key}={value}" for key, value in keys.items()])


def product_speeds(shapes: list[list[int]]) -> dict[str, float]:
    """Measure the best speed of a matrix product [m, k] x [k, n] over some shapes, in GFLOP/s, per library."""
    import paddle

    from paddlesft.models.fast import primitives

    libraries = {"MKL": lambda x, y: paddle.matmul(x, y)}
    if primitives.has_onednn():
        libraries["oneDNN"] = lambda x, y: primitives.onednn_matmul(x, y, False, False)
    best = dict.fromkeys(libraries, 0.0)
    with paddle.no_grad():
        for m, k, n in shapes:
            x, y = paddle.randn([m, k]), paddle.randn([k, n])
            for name, multiply in libraries.items():
                seconds = []
                for _ in range(12):
                    begin = time.perf_counter()
                    multiply(x, y)
                    seconds.append(time.perf_counter() - begin)
                best[name] = max(best[name], 2e-9 * m * k * n / float(np.median(seconds[2:])))
    return best


if __name__ == "__main__":
    main(Path(sys.argv[1]))
