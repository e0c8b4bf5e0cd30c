"""Logits of transformers on several models, from Hugging Face directories and from GGUF files (its own importer).

Run by the tests in the torch environment: gguf_logits.py MODELS.json PROMPTS.json OUT.npz
MODELS.json maps a name to a directory, or to a GGUF file. OUT.npz receives one array [tokens, vocabulary] per model
and prompt, named NAME/NUMBER.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
models_path, prompts_path, out = sys.argv[1:4]
models = json.loads(Path(models_path).read_text(encoding="utf-8"))
prompts = json.loads(Path(prompts_path).read_text(encoding="utf-8"))
logits = {}
with torch.no_grad():
    for name, place in models.items():
        place = Path(place)
        where = {"gguf_file": place.name} if place.suffix == ".gguf" else {}
        model = AutoModelForCausalLM.from_pretrained(
            place.parent if where else place, torch_dtype=torch.float32, attn_implementation="eager", **where
        ).eval()
        for number, prompt in enumerate(prompts):
            logits[f"{name}/{number}"] = model(input_ids=torch.tensor([prompt])).logits[0].numpy()
np.savez(out, **logits)
print(json.dumps({"models": len(models)}))
