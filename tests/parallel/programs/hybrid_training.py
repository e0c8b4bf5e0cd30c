"""A rank that trains PaddleNLP's own models with PaddleNLP's own Trainer: ``hybrid_training.py JOBS.json``.

JOBS.json holds a list of jobs {name, model (directory), arguments (of TrainingArguments), output, and perhaps
momentum, broken}; each writes ``output/NAME.json``, the list of its losses. Jobs share the start of a rank.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.distributed import parallel_helper
from paddle.distributed.fleet.base import topology
from paddle.distributed.fleet.layers.mpu import mp_ops
from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker
from paddlenlp.trainer import Trainer, TrainerCallback, TrainingArguments
from paddlenlp.transformers import AutoConfig, AutoModelForCausalLM, AutoModelForCausalLMPipe
from paddlenlp.utils.log import logger

from paddlesft.parallel import gloo
from paddlesft.parallel.gloo.process_group import FINISHED, SocketProcessGroup

ROWS, LENGTH = 16, 24  # two global batches of 8, seen again and again: the losses fall


class Rows(paddle.io.Dataset):
    """Random tokens; the first third of each row is not trained."""

    def __init__(self, vocabulary: int) -> None:
        tokens = np.random.default_rng(5).integers(3, vocabulary, (ROWS, LENGTH + 1))
        self.inputs, self.labels = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        self.labels[:, : LENGTH // 3] = -100

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.inputs[index], "labels": self.labels[index]}


class InOrder(Trainer):
    """The rows in their order, cut into the same global batches for any number of ranks."""

    def _get_train_sampler(self) -> paddle.io.BatchSampler:
        return paddle.io.DistributedBatchSampler(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            shuffle=False,
            num_replicas=self.args.dataset_world_size,
            rank=self.args.dataset_rank,
        )


class InOrderWithMomentum(InOrder):
    """AdamW divides by the size of the gradients and hides wrong factors in them; momentum shows them."""

    def create_optimizer(self, lr_scheduler: Any = None) -> Any:
        self.optimizer = paddle.optimizer.Momentum(
            lr_scheduler,
            parameters=[p for p in self.model.parameters() if not p.stop_gradient],
            grad_clip=paddle.nn.ClipGradByGlobalNorm(self.args.max_grad_norm),
        )
        return self.optimizer


class Losses(TrainerCallback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.values.append(logs["loss"])


def run(job: dict[str, Any]) -> None:
    """Train as a job says and write its losses."""
    output = Path(job["output"])
    # else TrainingArguments and Fleet keep the layout of the job before
    parallel_helper.__parallel_ctx__clz__ = topology._HYBRID_PARALLEL_GROUP = None
    get_rng_state_tracker().reset()
    arguments = TrainingArguments(
        output_dir=str(output / "trainer"),
        logging_steps=1,
        save_strategy="no",
        device="cpu",
        disable_tqdm=True,
        report_to=[],
        seed=11,
        **job["arguments"],
    )
    parallel_helper.__parallel_ctx__clz__ = True
    pipeline = arguments.pipeline_parallel_degree > 1
    config = AutoConfig.from_pretrained(job["model"])
    config.tensor_parallel_degree = arguments.tensor_parallel_degree
    config.tensor_parallel_rank = arguments.tensor_parallel_rank
    config.sequence_parallel = arguments.sequence_parallel
    config.use_flash_attention = False
    config.seq_length = LENGTH  # the rows of a sequence-parallel batch are told apart by it
    kind = AutoModelForCausalLMPipe if pipeline else AutoModelForCausalLM
    model = kind.from_pretrained(job["model"], config=config, dtype="float32")
    losses = Losses()
    kind = InOrderWithMomentum if job.get("momentum") else InOrder
    trainer = kind(model=model, args=arguments, train_dataset=Rows(config.vocab_size), callbacks=[losses])
    with broken(job.get("broken")):
        trainer.train()
    if int(os.environ.get("PADDLE_TRAINER_ID") or 0) == 0:
        (output / f"{job['name']}.json").write_text(json.dumps(losses.values), encoding="utf-8")


@contextlib.contextmanager
def broken(what: str | None) -> Iterator[None]:
    """Leave one sum out, to see that the comparison notices."""
    if what is None:
        yield
        return
    target, name, replacement = {
        "tensor parallel gradient": (mp_ops.c_identity_eager, "backward", staticmethod(lambda ctx, gradient: gradient)),
        "data parallel gradient": (SocketProcessGroup, "all_reduce", lambda self, *_: FINISHED),
    }[what]
    whole = target.__dict__[name]
    setattr(target, name, replacement)
    try:
        yield
    finally:
        setattr(target, name, whole)


def main() -> None:
    """Run the jobs of a file, one after the other."""
    paddle.set_device("cpu")
    logger.logger.setLevel(logging.WARNING)
    gloo.install()
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        sys.stderr.write(f"job {job['name']}\n")
        with paddle.utils.unique_name.guard():  # stage 3 sorts by names, which pipeline stages count differently
            run(job)


if __name__ == "__main__":
    main()
