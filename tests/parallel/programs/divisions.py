"""A rank that takes models apart and puts them together: ``divisions.py JOBS.json``.

JOBS.json holds a list of jobs {name, model (directory), output, method ("full", "lora" or "prefix"), arguments (of
TrainingArguments: the layout), slices (numbers from which on sharding stage 3 slices a weight)}. Of each, the first
rank writes ``output/NAME.npz``: the weights gathered after every rank has put its parts of known values, and the shapes
that ranks held to ``output/NAME.RANK.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddlenlp.transformers as zoo
from paddle.distributed import parallel_helper
from paddle.distributed.fleet.base import topology
from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage3 import GroupShardedStage3
from paddlenlp.peft import LoRAConfig, LoRAModel, PrefixConfig
from paddlenlp.trainer import TrainingArguments

from paddlesft.models import family_of
from paddlesft.models.load import load_config
from paddlesft.parallel import gloo
from paddlesft.parallel.division import Division
from paddlesft.tuning.prefix import prefix_shape
from paddlesft.tuning.prefix_model import PrefixModel


def known_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that every rank can make for a whole weight."""
    return np.random.default_rng(sum(map(ord, name))).normal(size=shape).astype(np.float32)


def divided_model(job: dict[str, Any], arguments: TrainingArguments) -> paddle.nn.Layer:
    """Build this rank's part of a job's model."""
    config = load_config(job["model"])
    config.tensor_parallel_degree = max(arguments.tensor_parallel_degree, 1)
    config.tensor_parallel_rank = max(arguments.tensor_parallel_rank, 0)
    config.use_flash_attention, config.seq_length = False, 32
    family = family_of(config)
    pipeline = arguments.pipeline_parallel_degree > 1
    model = getattr(zoo, family.pipe_class if pipeline else family.causal_lm)(config)
    if not pipeline:
        family.fix_model(model, lambda name: not name.startswith("lm_head"))
    if job["method"] == "lora":
        degree = config.tensor_parallel_degree
        adapter = LoRAConfig(
            r=4, lora_alpha=8, target_modules=list(family.lora_target_modules), tensor_parallel_degree=degree
        )
        model = LoRAModel(model, adapter)
        model.mark_only_lora_as_trainable()
    elif job["method"] == "prefix":
        adapter = PrefixConfig(num_prefix_tokens=4, dtype="float32", **prefix_shape(model, family))
        model = PrefixModel(model, adapter, family.prefix_postprocess_function())
    if job.get("slices") is not None:
        optimizer = paddle.optimizer.AdamW(parameters=[p for p in model.parameters() if not p.stop_gradient])
        group = topology._HYBRID_PARALLEL_GROUP.get_sharding_parallel_group()
        GroupShardedStage3(model, optimizer, group=group, segment_size=job["slices"], device="gpu")
    return model


def run(job: dict[str, Any]) -> None:
    """Put and gather as a job says."""
    output = Path(job["output"])
    # else TrainingArguments and Fleet keep the layout of the job before
    parallel_helper.__parallel_ctx__clz__ = topology._HYBRID_PARALLEL_GROUP = None
    get_rng_state_tracker().reset()
    arguments = TrainingArguments(
        output_dir=str(output), device="cpu", disable_tqdm=True, report_to=[], **job["arguments"]
    )
    division = Division(divided_model(job, arguments))
    for name in division.own:
        division.put(name, known_values(name, division.whole_shape(name)))
    held = {name: list(getattr(t, "fw_storage", t).shape) for name, t in division.own.items()}
    gathered = dict(division.gather())
    rank = paddle.distributed.get_rank()
    (output / f"{job['name']}.{rank}.json").write_text(json.dumps(held), encoding="utf-8")
    if rank == 0:
        np.savez(output / f"{job['name']}.npz", **gathered)
    else:
        assert set(gathered.values()) <= {None}


def main() -> None:
    """Run the jobs of a file, one after the other."""
    paddle.set_device("cpu")
    gloo.install()
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        with paddle.utils.unique_name.guard():
            run(job)


if __name__ == "__main__":
    main()
