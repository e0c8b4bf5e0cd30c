"""LoRA or QLoRA step by step, with what it holds in memory. Arguments: the setting directory, and the base's format."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from pipe import serve, timed

import paddlesft  # noqa: F401  (prepares the environment before paddle is imported)


def main(directory: Path, algorithm: str, double: str) -> None:
    import paddle

    from paddlesft.config import load_run_config
    from paddlesft.models import load_model
    from paddlesft.models.fast import accelerate
    from paddlesft.training.loss import supervised_loss
    from paddlesft.tuning.prepare import base_format, prepare_for_tuning

    setting = json.loads((directory / "setting.json").read_text(encoding="utf-8"))
    keys = [f"model_name_or_path={setting['model']}", "output_dir=unused", "train_dataset_path=unused", "lora=true"]
    if algorithm != "none":
        keys += [f"weight_quantize_algo={algorithm}", f"weight_double_quant={double}"]
    config = load_run_config(None, keys)
    before = resident()
    model = load_model(setting["model"], dtype="float32", for_training=True, quantize=base_format(config))
    accelerate(model)
    weights = sum(tensor.numel().item() * tensor.element_size() for tensor in each_once(model))
    model = prepare_for_tuning(model, config)
    model.train()
    trained = [p for p in model.parameters() if not p.stop_gradient]
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=trained)
    loaded = resident()
    with np.load(directory / "batch.npz") as arrays:
        batch = {name: arrays[name] for name in ("input_ids", "attention_mask")}
        labels = arrays["labels"]
        batch["labels"] = np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], -100)], axis=1)

    def step() -> float:
        summed, count = supervised_loss(model, batch)
        loss = summed / count
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss)

    ready = {"before": before, "loaded": loaded, "weights": weights, "trained": sum(p.numel().item() for p in trained)}
    serve(ready, {"step": lambda: timed(step)})


def each_once(model) -> list:
    """Return the tensors of a model; a head that is the embedding counts once."""
    return list({tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values())


def resident() -> int:
    """Return the bytes that the process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
