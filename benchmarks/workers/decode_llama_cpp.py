"""llama.cpp through the functions of its C interface: prompts and steps of all rows as one batch, greedy.

Runs where llama-cpp-python is installed. Arguments: the directory of decode_speed.py's setting, and a GGUF file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import llama_cpp as c
import numpy as np
from decoding import held, read_setting, serve_decoding, step_by_step


def main(directory: str, gguf: str) -> None:
    setting = read_setting(directory)
    c.llama_backend_init()
    before = held()
    loading = c.llama_model_default_params()
    loading.n_gpu_layers = 0
    model = c.llama_model_load_from_file(str(Path(gguf)).encode(), loading)
    rows = max(map(len, setting["prompts"].values()))
    longest = max(len(prompt) for prompts in setting["prompts"].values() for prompt in prompts) + setting["new_tokens"]
    settings = c.llama_context_default_params()
    settings.n_ctx = rows * (longest + 1)
    settings.n_batch = settings.n_ubatch = rows * longest
    settings.n_seq_max = rows
    settings.n_threads = settings.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
    context = c.llama_init_from_model(model, settings)
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(rows * longest, 0, 1)

    def run(tokens: list[list[int]], start: int) -> np.ndarray:
        """Run new tokens of each row, which stand at ``start`` and behind; return the next token of each."""
        last = []
        batch.n_tokens = 0
        for row, new in enumerate(tokens):
            for offset, token in enumerate(new):
                i = batch.n_tokens
                batch.token[i], batch.pos[i] = token, start + offset
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
                batch.logits[i] = offset == len(new) - 1
                batch.n_tokens += 1
            last.append(batch.n_tokens - 1)
        if c.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        logits = (np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), shape=(vocabulary,)) for i in last)
        return np.array([row.argmax() for row in logits])

    def decode(prompts: list[list[int]], new_tokens: int) -> dict:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        done = len(prompts[0])

        def step(tokens: np.ndarray) -> np.ndarray:
            nonlocal done
            result = run([[int(token)] for token in tokens], done)
            done += 1
            return result

        return step_by_step(lambda: run(prompts, 0), step, new_tokens)

    serve_decoding(setting, f"llama-cpp-python {c.__version__}", before, decode)


if __name__ == "__main__":
    main(*sys.argv[1:])
