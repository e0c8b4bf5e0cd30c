"""Perplexity of gsm8k's test rows before and after a LoRA run on some of its training rows.

    python benchmarks/gsm8k_perplexity.py --data path/to/gsm8k

Both figures come from the `paddlesft train` command on the same rows: once with `do_eval` alone on the base model, once
at the end of `configs/smollm2/gsm8k.yaml`. Prints a table and writes nothing but the run's own output directory.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
CONFIG = REPO / "configs" / "smollm2" / "gsm8k.yaml"


def main() -> int:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with gsm8k's train.jsonl and test.jsonl")
    parser.add_argument("--rows", type=int, default=512, help="training rows")
    parser.add_argument("--eval-rows", type=int, default=200, help="test rows")
    parser.add_argument("--output", type=Path, help="keep the adapter here (default: a temporary directory)")
    options = parser.parse_args()
    files = [options.data / "train.jsonl", options.data / "test.jsonl"]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        print(
            f"missing: {', '.join(missing)}. --data takes the directory that holds gsm8k's two files.", file=sys.stderr
        )
        return 2

    with tempfile.TemporaryDirectory() as scratch:
        shared = [f"train_dataset_path={files[0]}", f"eval_dataset_path={files[1]}"]
        shared += [f"max_train_samples={options.rows}", f"max_eval_samples={options.eval_rows}"]
        before = train(Path(scratch) / "before", *shared, "lora=false", "do_train=false", "do_eval=true",
                       "evaluation_strategy=no", "save_strategy=no")  # fmt: skip
        start = time.monotonic()
        after = train(options.output or Path(scratch) / "after", *shared)
        minutes = (time.monotonic() - start) / 60

    print(
        f"\n{platform.machine()}, {platform.platform()}; {options.rows} training rows, {options.eval_rows} test rows\n"
    )
    print("| gsm8k test | base model | after LoRA |")
    print("|---|---|---|")
    for key, text in (("eval_loss", "loss"), ("eval_perplexity", "perplexity"), ("eval_accuracy", "token accuracy")):
        print(f"| {text} | {before[key]:.4f} | {after[key]:.4f} |")
    ratio = after["eval_perplexity"] / before["eval_perplexity"]
    print(f"\nperplexity after / before: {ratio:.3f}; the LoRA run took {minutes:.1f} minutes with its evaluation")
    return 0


def train(output: Path, *overrides: str) -> dict[str, float]:
    """Run ``paddlesft train`` on the gsm8k config and return its metrics."""
    command = [sys.executable, "-m", "paddlesft", "train", str(CONFIG), *overrides, f"output_dir={output}"]
    print("$ paddlesft " + " ".join(command[3:]), flush=True)
    subprocess.run(command, check=True, cwd=REPO)
    return json.loads((output / "all_results.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
