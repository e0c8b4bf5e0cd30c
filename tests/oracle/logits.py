"""Logits and greedy text of transformers on a Hugging Face directory.

Run by the tests in the torch environment: logits.py MODEL_DIR PROMPTS.json OUT.npz NEW_TOKENS
PROMPTS.json holds a list of lists of token ids. OUT.npz receives one array [tokens, vocabulary] per prompt.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
model_dir, prompts_path, out, new_tokens = sys.argv[1:5]
with open(prompts_path, encoding="utf-8") as file:
    prompts = json.load(file)
model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32, attn_implementation="eager").eval()
logits, greedy = {}, []
with torch.no_grad():
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        logits[str(i)] = model(input_ids=ids).logits[0].numpy()
        if int(new_tokens):
            answer = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=int(new_tokens), do_sample=False
            )
            greedy.append(answer[0, len(prompt) :].tolist())
np.savez(out, **logits)
print(json.dumps({"greedy": greedy, "tied": bool(model.config.tie_word_embeddings)}))
