"""Write what a rehearsal prints into docs/parallel.md, by running one: python tools/write_rehearsal.py

It takes two minutes on two cores. The model's config.json is that of Llama 2 7B, in Hugging Face's layout.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PAGE = "docs/parallel.md"
BEGIN, END = "<!-- rehearsal: written by tools/write_rehearsal.py -->", "<!-- end of the rehearsal -->"
CONFIG = "configs/llama/sft_pp.yaml"
MODEL = "Llama-2-7b-hf/config.json"
ARGUMENTS = ["--world_size", "16", "--model_config", MODEL]
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0",
    "vocab_size": 32000,
}  # fmt: skip


def rehearse() -> str:
    """Run the rehearsal and return the command with what it printed.

    Raises:
        RuntimeError: it did not pass.
    """
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "configs").symlink_to(REPO / "configs")
        model = Path(place, MODEL)
        model.parent.mkdir()
        model.write_text(json.dumps(LLAMA_2_7B), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "paddlesft", "rehearse", CONFIG, *ARGUMENTS], cwd=place, check=False, text=True,
            capture_output=True, env={**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "118", "NO_COLOR": "1"},
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    return f"```text\n$ paddlesft rehearse {CONFIG} {' '.join(ARGUMENTS)}\n{printed}\n```"


def with_output(text: str, output: str) -> str:
    """Return the page with another output.

    Raises:
        ValueError: the page has no place for it.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{PAGE} has no place for the rehearsal: {BEGIN} ... {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{output}\n{END}", text)


if __name__ == "__main__":
    output = rehearse()  # before the page is read: others may write it meanwhile
    page = REPO / PAGE
    page.write_text(with_output(page.read_text(encoding="utf-8"), output), encoding="utf-8")
    print(f"{PAGE}: written")
