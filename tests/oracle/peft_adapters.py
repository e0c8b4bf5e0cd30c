"""Random LoRA adapters of PEFT, and what transformers with PEFT computes with adapters that others have written.

Run by the tests in the torch environment:
    peft_adapters.py make OUT CASES.json      an adapter for each case into OUT/NAME, its logits into OUT/NAME.npy
    peft_adapters.py logits OUT CASES.json    the logits of each case's adapter into OUT/NAME.npy
A case: {"name", "base": DIR, "ids": [[...]], "adapter": DIR, "config": arguments of LoraConfig}.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
action, out, cases = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
for case in cases:
    base = AutoModelForCausalLM.from_pretrained(case["base"], torch_dtype=torch.float32, attn_implementation="eager")
    if action == "make":
        torch.manual_seed(1)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **case["config"]))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn_like(parameter)
        model.save_pretrained(out / case["name"])
    else:
        model = PeftModel.from_pretrained(base, case["adapter"])
    model.eval()
    with torch.no_grad():
        np.save(out / f"{case['name']}.npy", model(input_ids=torch.tensor(case["ids"])).logits.numpy())
        model.unload() if action == "make" else None
print(json.dumps({"cases": [case["name"] for case in cases]}))
