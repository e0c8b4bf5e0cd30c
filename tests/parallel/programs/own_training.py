"""A rank of the project's own run: ``own_training.py JOBS.json``.

JOBS.json holds a list of jobs {name, config: ["key=value", ...], divided: whether layers or the optimizer's state are},
and perhaps momentum (learning rate), broken (what), bad_step (its number). Each is one run of ``train``. Jobs share the
start of a rank; those that are not divided come first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import paddle
from paddle.distributed import parallel_helper, sharding
from paddle.distributed.fleet.base import topology
from paddle.distributed.fleet.layers.mpu import mp_ops
from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

from paddlesft.config import load_run_config
from paddlesft.models import pipeline
from paddlesft.parallel import gloo
from paddlesft.parallel.gloo.process_group import FINISHED, SocketProcessGroup
from paddlesft.training import passes
from paddlesft.training import run as training_run
from paddlesft.training.events import Observer, Plan
from paddlesft.training.trainer import SFTTrainer

RANK = int(os.environ.get("PADDLE_TRAINER_ID") or 0)
SEGMENT = 256  # numbers: stage 3 leaves smaller weights whole; Paddle's own limit is above all weights of a tiny model


class WithMomentum(SFTTrainer):
    """AdamW divides by the size of the gradients and hides wrong factors in them; momentum shows them."""

    learning_rate = 0.0

    def create_optimizer(self, lr_scheduler: Any = None) -> Any:
        clip = self.args.max_grad_norm
        self.optimizer = paddle.optimizer.Momentum(
            self.learning_rate,
            parameters=[p for p in self.model.parameters() if not p.stop_gradient],
            grad_clip=paddle.nn.ClipGradByGlobalNorm(clip) if clip > 0 else None,
        )
        return self.optimizer


class NotANumber(SFTTrainer):
    """In one step the last rank that reads rows of its own (with all that share its layers) computes NaN."""

    bad_step = 0

    def training_step(self, model: paddle.nn.Layer, inputs: Any) -> paddle.Tensor:
        hooks = []
        if (self.state.global_step + 1, self.args.dataset_rank + 1) == (self.bad_step, self.args.dataset_world_size):
            norms = [layer for layer in model.sublayers() if "RMSNorm" in type(layer).__name__]
            hooks.append(norms[-1].register_forward_post_hook(lambda layer, given, output: output * float("nan")))
        loss = super().training_step(model, inputs)
        for hook in hooks:
            hook.remove()
        return loss


class Warnings(Observer):
    """Writes what a user would be warned of into the rank's log, and the plan beside the run's directory."""

    def resolved_config(self, run_config: Any) -> None:
        self.output_dir = run_config.training.output_dir

    def plan(self, plan: Plan) -> None:
        Path(f"{self.output_dir}.plan.json").write_text(json.dumps(dataclasses.asdict(plan)), encoding="utf-8")

    def warning(self, text: str) -> None:
        sys.stderr.write(f"warning: {text}\n")


def broken(what: str | None) -> contextlib.AbstractContextManager[Any]:
    """Leave one sum out, to see that the comparison notices."""
    if what is None:
        return contextlib.nullcontext()
    return mock.patch.object(
        *{
            "tensor parallel gradient": (
                mp_ops.c_identity_eager,
                "backward",
                staticmethod(lambda ctx, gradient: gradient),
            ),
            "gradients of tokens": (passes, "sum_sequence_gradients", lambda parameters: None),
            "norm of shared matrices": (pipeline, "_mark_shared", lambda stage: None),
            "gradients of sharding": (SocketProcessGroup, "reduce", lambda self, *_: FINISHED),
        }[what]
    )


def main() -> None:
    """Run the jobs of a file, one after the other."""
    gloo.install()  # for all layouts that this process runs, data parallelism alone among them
    whole = sharding.group_sharded_parallel
    sharding.group_sharded_parallel = functools.partial(whole, segment_size=SEGMENT)
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        begin = time.perf_counter()
        if job["divided"]:  # else TrainingArguments and Fleet keep the layout of the job before
            parallel_helper.__parallel_ctx__clz__ = topology._HYBRID_PARALLEL_GROUP = None
            get_rng_state_tracker().reset()
        trainer = SFTTrainer
        if job.get("momentum"):
            trainer = type("Trainer", (WithMomentum,), {"learning_rate": job["momentum"]})
        if job.get("bad_step"):
            trainer = type("Trainer", (NotANumber,), {"bad_step": job["bad_step"]})
        run_config = load_run_config(None, job["config"])
        with (
            paddle.utils.unique_name.guard(),  # stage 3 sorts by names, which pipeline stages count differently
            mock.patch.object(training_run, "SFTTrainer", trainer),
            mock.patch.object(training_run, "save_plot", lambda *_: None),  # a second each, and another test's matter
            broken(job.get("broken")),
        ):
            training_run.train(run_config, Warnings())
        sys.stderr.write(f"job {job['name']}: {time.perf_counter() - begin:.1f} s\n")


if __name__ == "__main__":
    main()
