"""A tensor-parallel rank that loads a model, computes logits and saves its part: ``save_shards.py JOBS.json``.

JOBS.json holds a list of jobs {name, model (directory), output, prompts, method ("full", "lora" or "prefix")}.
PaddleNLP itself loads each rank's part, or divides a whole model, and saves the parts into ``output/NAME``; the logits
of rank r, of its part of the vocabulary or of all, go to ``output/NAME.logits_r.npz``. A job that fails leaves
``output/NAME.error``.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddlenlp.transformers as zoo
from paddle.distributed import fleet
from paddlenlp.peft import LoRAConfig, LoRAModel, PrefixConfig, PrefixModelForCausalLM

from paddlesft.checkpoints.verify import logits_of
from paddlesft.models import family_of
from paddlesft.models.load import load_config
from paddlesft.parallel import gloo
from paddlesft.tuning.prefix import prefix_shape


def adapt(model: Any, method: str | None, degree: int) -> Any:
    """Put an adapter with random weights on a model: the same in all ranks, except for what is divided among them."""
    family = family_of(model)
    if method == "lora":
        targets = list(family.lora_target_modules)
        config = LoRAConfig(r=4, lora_alpha=8, target_modules=targets, tensor_parallel_degree=degree, dtype="float32")
        model = LoRAModel(model, config)
        names = {name: value for name, value in model.named_parameters() if "lora_" in name}
    elif method == "prefix":
        shape = prefix_shape(model, family)
        config = PrefixConfig(num_prefix_tokens=4, tensor_parallel_degree=degree, dtype="float32", **shape)
        model = PrefixModelForCausalLM(model, config, postprocess_past_key_value=family.prefix_postprocess_function())
        names = dict(model.prefix_encoder.named_parameters())
    else:
        return model
    rank = fleet.get_hybrid_communicate_group().get_model_parallel_rank()
    for number, (_, value) in enumerate(names.items()):
        seed = 1000 * number + (rank + 1 if value.is_distributed else 0)
        values = np.random.default_rng(seed).normal(0, 0.3, value.shape)
        value.set_value(paddle.to_tensor(values, dtype="float32"))
    return model


def run(job: dict[str, Any], degree: int) -> None:
    """Load, compute and save as a job says."""
    rank = fleet.get_hybrid_communicate_group().get_model_parallel_rank()
    config = load_config(job["model"])
    config.tensor_parallel_degree, config.tensor_parallel_rank = degree, rank
    config.use_flash_attention = False
    family = family_of(config)
    model = getattr(zoo, family.causal_lm).from_pretrained(
        job["model"], config=config, dtype="float32", convert_from_torch=False
    )
    part = Path(job["model"]) / f"model_state.tp{rank:02d}.pdparams"
    stored = paddle.load(str(part), return_numpy=True) if part.is_file() else {}
    family.fix_model(model, lambda name: name in stored)
    model = adapt(model, job.get("method"), degree)
    model.eval()
    logits = logits_of(model, job["prompts"])
    output = Path(job["output"])
    np.savez(output / f"{job['name']}.logits_{rank}.npz", *logits)
    options = {"merge_tensor_parallel": False, "is_main_process": rank == 0}
    model.save_pretrained(str(output / job["name"]), variant=f"tp{rank:02d}", **options)


def main() -> None:
    """Run the jobs of a file, one after the other."""
    paddle.set_device("cpu")
    gloo.install()
    degree = paddle.distributed.get_world_size()
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {"mp_degree": degree}
    fleet.init(is_collective=True, strategy=strategy)
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            run(job, degree)
        except Exception:
            (Path(job["output"]) / f"{job['name']}.error").write_text(traceback.format_exc(), encoding="utf-8")


if __name__ == "__main__":
    main()
