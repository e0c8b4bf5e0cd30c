"""One training step of torch + transformers + PEFT as their documentation has it: model(labels=...), backward, AdamW.

Runs in the environment .venv-oracle; arguments: the setting directory written by train_speed.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from pipe import serve, timed


def main(directory: Path) -> None:
    setting = json.loads((directory / "setting.json").read_text(encoding="utf-8"))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = transformers.AutoModelForCausalLM.from_pretrained(setting["torch_model"], dtype=torch.float32)
    if setting["method"] == "lora":
        targets = setting["targets"]
        config = peft.LoraConfig(
            r=setting["rank"], lora_alpha=setting["alpha"], lora_dropout=0.0, target_modules=targets
        )
        model = peft.get_peft_model(model, config)
        with np.load(directory / "adapter.npz") as adapter:
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    layer, _, part = name.partition(".lora_")
                    key = layer[layer.index("layers.") :] + ".lora_" + part[0]
                    parameter.data.copy_(torch.from_numpy(adapter[key].T))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting["learning_rate"], weight_decay=setting["weight_decay"])
    with np.load(directory / "batch.npz") as arrays:
        batch = {name: torch.from_numpy(arrays[name]) for name in ("input_ids", "attention_mask", "labels")}

    def step() -> float:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    attention = model.config._attn_implementation
    ready = {"versions": versions, "about": f"{attention} attention", "trained": sum(p.numel() for p in trained)}
    serve(ready, {"step": lambda: timed(step)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
