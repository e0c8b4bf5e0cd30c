"""Configurations with parallel keys, as a file would give them, for the tests of layouts."""

from __future__ import annotations

from typing import Any

from paddlesft.config.origins import Origin
from paddlesft.config.resolve import RunConfig, load_run_config

BASE = ("model_name_or_path=m", "output_dir=o", "dataset_name_or_path=d")
LINES = {"tensor_parallel_degree": 4, "pipeline_parallel_degree": 5, "sharding": 6, "sharding_parallel_degree": 7}


def run_with(**keys: Any) -> RunConfig:
    """Return a run whose file ``sft.json`` sets these keys: the parallel ones in lines 4 to 7, others in line 9."""
    run = load_run_config(None, BASE)
    for key, value in keys.items():
        group, _ = run.find(key)
        setattr(group, key, value)
        run.origins[key] = Origin("file", f"sft.json:{LINES.get(key, 9)}")
    return run
