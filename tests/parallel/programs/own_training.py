"""A rank of the project's own run: ``own_training.py JOBS.json``.

JOBS.json holds a list of jobs {config: ["key=value", ...], layout: {key: value}}. Each is one run of ``train``; the
layout is put into the config after it was checked. Jobs share the start of a rank; those without a layout come first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import paddle
from paddle.distributed import parallel_helper
from paddle.distributed.fleet.base import topology
from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

from paddlesft.config import load_run_config
from paddlesft.parallel import gloo
from paddlesft.training.run import train


def main() -> None:
    """Run the jobs of a file, one after the other."""
    gloo.install()  # for all layouts that this process runs, data parallelism alone among them
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run_config = load_run_config(None, job["config"])
        if job["layout"]:  # else TrainingArguments and Fleet keep the layout of the job before
            parallel_helper.__parallel_ctx__clz__ = topology._HYBRID_PARALLEL_GROUP = None
            get_rng_state_tracker().reset()
        with paddle.utils.unique_name.guard():
            train(run_config)


if __name__ == "__main__":
    main()
