"""paddlesft export-hf: write a model directory in Hugging Face's layout, for transformers and what builds on it.

    paddlesft export-hf demo_output/model models/for-transformers

MODEL is a model directory, a hub name or embedded:smollm2; DIR is created, complete or not at all; MODEL is only read.
Every tensor keeps its type. `paddlesft models` shows which families can be written (HF out). paddlesft export --format
hf does the same, and merges an adapter (--lora_path) or casts (--dtype) on the way.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from paddlesft.cli.verb_arguments import read_arguments, show_help, split_positionals, wants_help

if TYPE_CHECKING:
    from paddlesft.checkpoints.hugging_face_export import HuggingFaceExport

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


def export_and_show(
    source: str | None, target: str, overwrite: bool, adapter: str | None = None, dtype: str | None = None
) -> int:
    """Write a model in Hugging Face's layout, and say so.

    Args:
        source: a model directory, a hub name or embedded:smollm2; None: the base of the adapter.
        target: the directory to create.
        overwrite: replace it when it has content.
        adapter: a LoRA directory to merge on the way.
        dtype: type of the weights; None: as they are.

    Returns:
        0; errors are raised.
    """
    from paddlesft.checkpoints.hugging_face_export import export_hugging_face

    began = time.perf_counter()
    _show(source, export_hugging_face(source, target, adapter, dtype, overwrite), adapter, time.perf_counter() - began)
    return 0


def _show(source: str | None, done: HuggingFaceExport, adapter: str | None, seconds: float) -> None:
    from rich.console import Console

    from paddlesft.models.directory import read_config
    from paddlesft.models.provenance import read_provenance

    console, directory = Console(highlight=False, soft_wrap=True), done.output
    config, facts = read_config(directory), read_provenance(directory)
    console.print(f"Wrote {config['architectures'][0]} for transformers in {seconds:.1f} s", markup=False)
    console.print(f"  from        {source or done.merged.base}", markup=False)
    if done.merged is not None:
        console.print(f"  merged with {adapter} ({done.merged.updated} layers)", markup=False)
        console.print(f"  proof       {done.merged.comparison.sentence()}", markup=False)
    console.print(f"  stored as   {facts['dtype']}")
    console.print(f"  fingerprint {facts['fingerprint']}")
    for note in done.notes:
        console.print(f"Note: {note}", markup=False)
    console.print(f"Directory: {directory}", markup=False)
    console.print(f'Next, in Python: AutoModelForCausalLM.from_pretrained("{directory}")', markup=False)
