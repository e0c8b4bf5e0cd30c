"""paddlesft import-peft: turn a LoRA adapter of Hugging Face PEFT into one that every verb here reads.

    paddlesft import-peft peft-adapter adapters/mine --model_name_or_path models/base

ADAPTER is the directory that PEFT (or LLaMA-Factory) wrote: adapter_config.json and adapter_model.safetensors. DIR is
created, complete or not at all; ADAPTER is only read. The other way: paddlesft export --format peft.
"""

from __future__ import annotations

import shlex

from paddlesft.cli.verb_arguments import read_arguments, show_help, split_positionals, wants_help

USAGE = "usage: paddlesft import-peft ADAPTER DIR [--model_name_or_path BASE] [--overwrite]"


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.verbs import ImportPeftConfig

    if wants_help(argv):
        return show_help(f"{__doc__}\n{USAGE}\n", "import_peft", ImportPeftConfig)
    (source, target), options = split_positionals(argv, ("ADAPTER", "DIR"), USAGE)
    config = read_arguments("import_peft", ImportPeftConfig, options)

    from rich.console import Console

    from paddlesft.checkpoints.adapter import read_adapter
    from paddlesft.checkpoints.peft_adapters import import_peft

    adapter = read_adapter(import_peft(source, target, config.model_name_or_path, config.overwrite))
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Imported {len(adapter.updated)} updates of rank {adapter.config['r']} from {source}", markup=False)
    console.print(f"Directory: {target}", markup=False)
    console.print(f"Next: paddlesft chat --lora_path {shlex.quote(target)}", markup=False)
    return 0
