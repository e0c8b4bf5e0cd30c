"""``paddlesft train``: fine-tune a model from one config file, and show what happens."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from paddlesft.cli.verb_arguments import wants_help

USAGE = """usage: paddlesft train [CONFIG.yaml | CONFIG.json] [key=value | --key value | --flag] ...

Fine-tune a model: LoRA (lora=true), Prefix-Tuning (prefix_tuning=true) or all weights (neither).

  paddlesft train configs/smollm2/lora.yaml
  paddlesft train configs/smollm2/lora.yaml learning_rate=1e-4 output_dir=runs/second
  python -m paddle.distributed.launch llm/finetune.py configs/smollm2/lora.yaml

A run that was interrupted goes on from its newest complete checkpoint when it is started again.

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
    from paddlesft.config import load_run_config

    run_config = load_run_config(None, list(argv))
    from paddlesft.cli.train_display import TrainDisplay

    first = os.environ.get("PADDLE_TRAINER_ID", "0") == "0"
    with TrainDisplay(quiet=not first) as display:
        for notice in run_config.notices:
            display.message(notice)
        from paddlesft.training.run import train

        train(run_config, display)
    return 0
