"""paddlesft merge-shards: merge the weight files of a parallel run's ranks into one model or adapter.

    paddlesft merge-shards --model_name_or_path output/sft/checkpoint-100 --output_path models/merged
    python tools/merge_tp_params.py --model_name_or_path output/sft/checkpoint-100 --output_path models/merged

Tensor-parallel ranks (model_state.tp00.pdparams), pipeline stages (pp00) and both together; models, LoRA and prefix.
The directory appears only when every rank's part has been found again in it, bit for bit.
"""

from __future__ import annotations

import shlex

from paddlesft.cli.verb_arguments import read_arguments, show_help, wants_help
from paddlesft.errors import ConfigError

EXAMPLE = "paddlesft merge-shards --model_name_or_path output/sft/checkpoint-100 --output_path models/merged"


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.verbs import MergeShardsConfig

    if wants_help(argv):
        return show_help(__doc__, "merge_shards", MergeShardsConfig)
    config = read_arguments("merge_shards", MergeShardsConfig, argv)
    for key in ("model_name_or_path", "output_path"):
        if getattr(config, key) is None:
            raise ConfigError(f"{key} is missing. Example: {EXAMPLE}")

    from paddlesft.checkpoints.merge_shards import merge_shards

    report = merge_shards(
        config.model_name_or_path,
        config.output_path,
        base=config.base_model_name_or_path,
        overwrite=config.overwrite,
        force=config.force,
        copy_whole=config.copy_whole,
        compute_logits=config.compute_logits,
    )
    _show(report)
    return 0


def _show(report: object) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    done = "Copied whole weights" if report.whole else "Merged"
    words = {"model": "full model", "lora": "LoRA adapter", "prefix": "prefix"}
    console.print(f"{done} in {report.seconds:.1f} s")
    console.print(f"  from     {report.files} files of a {words[report.kind]} ({report.layout})")
    console.print(f"  weights  {report.tensors}, {report.joined} of them joined from parts")
    console.print(f"  type     {report.dtype}, no number was changed")
    console.print(f"  proof    {report.parts} parts found again bit for bit in what was written")
    if report.logits is not None:
        console.print(f"  logits   computed on four prompts, up to {report.logits:.1f}")
    for notice in report.notices:
        console.print(f"Note: {notice}", markup=False)
    console.print(f"Directory: {report.output}", markup=False)
    option = {"model": "model_name_or_path", "lora": "lora_path", "prefix": "prefix_path"}[report.kind]
    console.print(f"Next: paddlesft chat --{option} {shlex.quote(str(report.output))}", markup=False)
