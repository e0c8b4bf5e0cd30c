"""The losses of a plain torch loop, with PEFT for LoRA, on given steps of given tokens.

Run by the tests in the torch environment: train_losses.py DIRECTORY. The directory holds
  setting.json   model (Hugging Face directory), method (lora | full), rank, alpha, targets, weight_decay,
                 max_grad_norm, learning_rates (one per step), steps (per step a list of {input_ids, labels}; labels are
                 shifted already: labels[i] is the target of position i, -100 = not trained)
  adapter.npz    for lora: layers.N.BLOCK.NAME.lora_A [in, rank] and .lora_B [rank, out]
Prints {"losses": [...]}: the mean cross entropy over the trained tokens of each step, before its update.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
directory = Path(sys.argv[1])
setting = json.loads((directory / "setting.json").read_text(encoding="utf-8"))
model = AutoModelForCausalLM.from_pretrained(setting["model"], dtype=torch.float32)
if setting["method"] == "lora":
    config = LoraConfig(r=setting["rank"], lora_alpha=setting["alpha"], target_modules=setting["targets"])
    model = get_peft_model(model, config)
    adapter = np.load(directory / "adapter.npz")
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            layer, _, part = name.partition(".lora_")
            parameter.data.copy_(torch.from_numpy(adapter[f"{layer[layer.index('layers.') :]}.lora_{part[0]}"].T))
model.train()
trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
plain = [p for name, p in trained.items() if "norm" in name or "bias" in name]
decayed = [p for name, p in trained.items() if not ("norm" in name or "bias" in name)]
groups = [{"params": decayed, "weight_decay": setting["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
losses = []
for rows, learning_rate in zip(setting["steps"], setting["learning_rates"]):
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros([len(rows), width], dtype=torch.int64)
    labels = torch.full([len(rows), width], -100)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n], labels[i, :n], mask[i, :n] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"]), 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained.values(), setting["max_grad_norm"])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(json.dumps({"losses": losses}))
