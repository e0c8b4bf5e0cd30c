"""A rank that trains three steps with PaddleNLP's Trainer and saves its part after two: ``train_and_save.py JOBS``.

JOBS is a JSON file with a list of jobs {name, model (directory), output, arguments (of TrainingArguments), lora}. The
checkpoint, not unified, goes to ``output/NAME/checkpoint-2``, the losses of the steps to ``output/NAME.json``, the
third of which is that of the checkpoint on the first eight rows.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import paddle
from paddle.distributed import parallel_helper
from paddle.distributed.fleet.base import topology
from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker
from paddlenlp.peft import LoRAConfig, LoRAModel
from paddlenlp.trainer import TrainingArguments
from paddlenlp.transformers import AutoConfig, AutoModelForCausalLM, AutoModelForCausalLMPipe
from paddlenlp.utils.log import logger

from paddlesft.models.family import LLAMA_LORA_TARGETS
from paddlesft.parallel import gloo
from tests.parallel.programs.hybrid_training import LENGTH, InOrder, Losses, Rows


def run(job: dict[str, Any]) -> None:
    """Train and save as a job says."""
    output = Path(job["output"])
    # else TrainingArguments and Fleet keep the layout of the job before
    parallel_helper.__parallel_ctx__clz__ = topology._HYBRID_PARALLEL_GROUP = None
    get_rng_state_tracker().reset()
    arguments = TrainingArguments(
        output_dir=str(output / job["name"]), save_strategy="steps", save_steps=2, max_steps=3, logging_steps=1,
        device="cpu", disable_tqdm=True, report_to=[], seed=11, learning_rate=0.01, unified_checkpoint=False,
        **job["arguments"],
    )  # fmt: skip
    parallel_helper.__parallel_ctx__clz__ = True
    config = AutoConfig.from_pretrained(job["model"])
    config.tensor_parallel_degree = arguments.tensor_parallel_degree
    config.tensor_parallel_rank = arguments.tensor_parallel_rank
    config.use_flash_attention = False
    config.seq_length = LENGTH
    kind = AutoModelForCausalLMPipe if arguments.pipeline_parallel_degree > 1 else AutoModelForCausalLM
    model = kind.from_pretrained(job["model"], config=config, dtype="float32")
    if job.get("lora"):
        degree = config.tensor_parallel_degree
        adapter = LoRAConfig(r=4, lora_alpha=8, target_modules=list(LLAMA_LORA_TARGETS), tensor_parallel_degree=degree)
        model = LoRAModel(model, adapter)
        model.mark_only_lora_as_trainable()
    rows = Rows(config.vocab_size)
    losses = Losses()
    InOrder(model=model, args=arguments, train_dataset=rows, callbacks=[losses]).train()
    if int(os.environ.get("PADDLE_TRAINER_ID") or 0) == 0:
        (output / f"{job['name']}.json").write_text(json.dumps(losses.values), encoding="utf-8")


def main() -> None:
    """Run the jobs of a file, one after the other."""
    paddle.set_device("cpu")
    logger.logger.setLevel(logging.WARNING)
    gloo.install()
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        sys.stderr.write(f"job {job['name']}\n")
        run(job)


if __name__ == "__main__":
    main()
