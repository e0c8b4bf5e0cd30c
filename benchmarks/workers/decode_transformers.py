"""transformers' ``generate``, greedy. Runs in the environment .venv-oracle.

Arguments: the directory of decode_speed.py's setting, that of the model in Hugging Face's layout, the type.
"""

from __future__ import annotations

import os
import sys

import torch
import transformers
from decoding import held, read_setting, serve_decoding, whole_replies


def main(directory: str, model: str, dtype: str) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    before = held()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    loaded.eval()
    loaded.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no token ends a reply

    def decode(prompts: list[list[int]], new_tokens: int) -> dict:
        ids = torch.tensor(prompts)

        def generate(count: int) -> list[list[int]]:
            with torch.no_grad():
                replies = loaded.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count
                )
            return replies[:, ids.shape[1] :].tolist()

        return whole_replies(generate, new_tokens)

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    serve_decoding(read_setting(directory), versions, before, decode)


if __name__ == "__main__":
    main(*sys.argv[1:])
