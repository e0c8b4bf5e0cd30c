"""paddlesft split-shards: split a model or LoRA adapter into one weight file per card.

    paddlesft split-shards --model_name_or_path models/merged --output_path models/two_cards --tensor_parallel_degree 2

The files are those that a parallel run of PaddleNLP writes and loads (model_state.tp00.pdparams, ...). The directory
appears only when merging it gives the input back, bit for bit.
"""

from __future__ import annotations

from paddlesft.cli.verb_arguments import read_arguments, show_help, wants_help
from paddlesft.errors import ConfigError

EXAMPLE = "paddlesft split-shards --model_name_or_path models/sft --output_path models/two --tensor_parallel_degree=2"


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.verbs import SplitShardsConfig

    if wants_help(argv):
        return show_help(__doc__, "split_shards", SplitShardsConfig)
    config = read_arguments("split_shards", SplitShardsConfig, argv)
    for key in ("model_name_or_path", "output_path"):
        if getattr(config, key) is None:
            raise ConfigError(f"{key} is missing. Example: {EXAMPLE}")

    from paddlesft.checkpoints.split_shards import split_shards
    from paddlesft.models.resolve import resolve_model

    report = split_shards(
        resolve_model(config.model_name_or_path),
        config.output_path,
        tensor_parallel_degree=config.tensor_parallel_degree,
        pipeline_parallel_degree=config.pipeline_parallel_degree,
        ending=config.file_format,
        base=config.base_model_name_or_path,
        overwrite=config.overwrite,
    )
    _show(report)
    return 0


def _show(report: object) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Split in {report.seconds:.1f} s")
    size = f"{report.largest / 1e6:,.1f} MB"
    console.print(f"  files    {len(report.files)}, the largest of {size}: {report.files[0]}, ...")
    console.print(f"  weights  {report.tensors}, {report.divided} of them divided, the others whole in every rank")
    console.print("  proof    the parts give the input back, bit for bit")
    console.print(f"Directory: {report.output}", markup=False)
