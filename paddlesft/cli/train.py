"""``paddlesft train``: fine-tune a model from one config file, and show what happens."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paddlesft.cli.verb_arguments import wants_help

if TYPE_CHECKING:
    from paddlesft.cli.train_display import TrainDisplay

USAGE = """usage: paddlesft train [CONFIG.yaml | CONFIG.json] [key=value | --key value | --flag] ...

Fine-tune a model: LoRA (lora=true), Prefix-Tuning (prefix_tuning=true) or all weights (neither).

  paddlesft train configs/smollm2/lora.yaml
  paddlesft train configs/smollm2/lora.yaml learning_rate=1e-4 output_dir=runs/second
  paddlesft train --nproc 8 configs/llama/sft.yaml
  python -m paddle.distributed.launch llm/finetune.py configs/smollm2/lora.yaml

A run that was interrupted goes on from its newest complete checkpoint when it is started again.
With do_ptq, do_gptq or do_awq the model is quantized: the one just trained (do_train), or the one that is named; see
paddlesft quantize --help.

Several cards: the run starts one process on each visible GPU by itself.
  --nproc N         processes on this machine instead of one for each GPU (on a CPU: instead of 1)
  --log_dir DIR     one log for each process, workerlog.N; unset: output_dir/log
  --max_restarts N  start again up to N times from the newest checkpoint when a process dies; unset: 0
Several machines: the same command on each, with NNODES, RANK (of the machine), MASTER_ADDR and MASTER_PORT set.

Keys:
"""


def help_text() -> str:
    """Return the text of ``paddlesft train --help``, made from the declarations of the config's keys."""
    from paddlesft.config import RUN_GROUPS
    from paddlesft.config.reference import help_text as keys

    return USAGE + keys(RUN_GROUPS)


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind ``train``.

    Returns:
        The exit code.
    """
    if wants_help(argv):
        print(help_text())
        return 0
    if not argv:
        print(USAGE.removesuffix("Keys:\n") + "paddlesft train --help lists every key.", file=sys.stderr)
        return 2
    from paddlesft.cli.train_launch import launch_ranks, only_quantizes, take_launch_options

    options, keys = take_launch_options(argv)
    if only_quantizes(options, keys):
        from paddlesft.cli import quantize

        return quantize.run(keys)
    if is_rank():
        from paddlesft.cli.train_rank import run_rank

        return run_rank(options, keys)
    if launch_ranks(options, keys):
        return 0
    from paddlesft.cli.train_display import TrainDisplay

    return train_here(keys, TrainDisplay())


def is_rank() -> bool:
    """Return whether a launcher has started this process."""
    return bool(os.environ.get("PADDLE_TRAINERS_NUM"))


def train_here(keys: Sequence[str], display: TrainDisplay) -> int:
    """Do the run, or one rank's share of it, in this process.

    Args:
        keys: the config file and keys.
        display: shows what happens.

    Returns:
        The exit code.
    """
    from paddlesft.config import load_run_config

    run_config = load_run_config(None, list(keys))
    with display:
        for notice in run_config.notices:
            display.message(notice)
        from paddlesft.training.run import train

        if not run_config.quantization.asked:
            train(run_config, display)
            return 0
        from paddlesft.cli.quantize import quantize_and_show
        from paddlesft.quantization.run import after_training, check_output

        then = after_training(run_config)
        check_output(then)
        display.message(f"after training the model is quantized into {then.training.output_dir}")
        train(run_config, display)
    return quantize_and_show(then)
