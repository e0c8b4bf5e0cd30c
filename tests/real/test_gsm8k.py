"""Training on real data helps on real data that was not trained on: gsm8k, where it is present."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gsm8k_perplexity.py"


@pytest.mark.slow
def test_a_short_lora_run_lowers_the_perplexity_of_test_rows(gsm8k_dir: Path) -> None:
    """A twelfth of the documented run, through the benchmark and the command line."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--data", str(gsm8k_dir), "--rows", "40", "--eval-rows", "16"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(float, re.search(r"\| perplexity \| ([\d.]+) \| ([\d.]+) \|", done.stdout).groups())
    assert 3.5 < before < 5.5
    assert after < 0.93 * before


def test_the_script_names_the_files_that_it_misses(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--data", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "missing:" in done.stderr and "train.jsonl" in done.stderr and "Traceback" not in done.stderr
