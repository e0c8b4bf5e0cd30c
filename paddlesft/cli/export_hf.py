"""paddlesft export-hf: write a model directory in Hugging Face's layout, for transformers and what builds on it.

    paddlesft export-hf demo_output/model models/for-transformers

MODEL is a model directory, a hub name or embedded:smollm2; an adapter has to be merged first (paddlesft merge-lora).
DIR is created, complete or not at all; MODEL is only read. Every tensor keeps its type. `paddlesft models` shows which
families can be written (HF out).
"""

from __future__ import annotations

import time
from pathlib import Path

from paddlesft.cli.verb_arguments import read_arguments, show_help, split_positionals, wants_help

USAGE = "usage: paddlesft export-hf MODEL DIR [--overwrite]"


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.verbs import ExportHfConfig

    if wants_help(argv):
        return show_help(f"{__doc__}\n{USAGE}\n", "export_hf", ExportHfConfig)
    (source, target), options = split_positionals(argv, ("MODEL", "DIR"), USAGE)
    config = read_arguments("export_hf", ExportHfConfig, options)
    return export_and_show(source, target, config.overwrite)


def export_and_show(source: str, target: str, overwrite: bool) -> int:
    """Write a model in Hugging Face's layout, and say so.

    Args:
        source: a model directory, a hub name or embedded:smollm2.
        target: the directory to create.
        overwrite: replace it when it has content.

    Returns:
        0; errors are raised.
    """
    from paddlesft.models.hf_export import write_hugging_face
    from paddlesft.models.resolve import resolve_model

    model = resolve_model(source)
    began = time.perf_counter()
    directory = write_hugging_face(model, target, overwrite=overwrite)
    _show(source, directory, time.perf_counter() - began)
    return 0


def _show(source: str, directory: Path, seconds: float) -> None:
    from rich.console import Console

    from paddlesft.models.directory import read_config
    from paddlesft.models.provenance import read_provenance

    console = Console(highlight=False, soft_wrap=True)
    config, facts = read_config(directory), read_provenance(directory)
    console.print(f"Wrote {config['architectures'][0]} for transformers in {seconds:.1f} s", markup=False)
    console.print(f"  from        {source}", markup=False)
    console.print(f"  stored as   {facts['dtype']}")
    console.print(f"  fingerprint {facts['fingerprint']}")
    console.print(f"Directory: {directory}", markup=False)
    console.print(f'Next, in Python: AutoModelForCausalLM.from_pretrained("{directory}")', markup=False)
