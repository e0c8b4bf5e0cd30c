"""paddlesft dequantize: write the float weights that a quantized directory stands for.

    paddlesft dequantize models/mine-int8 models/mine-floats

MODEL is a directory that paddlesft quantize made from a weight-only format. DIR is created, complete or not at all, and
only when its logits equal MODEL's; MODEL is only read. Use it for what only floats can be used for: export-hf, full
fine-tuning, division among cards. What rounding has lost does not come back.
"""

from __future__ import annotations

import shlex

from paddlesft.cli.verb_arguments import read_arguments, show_help, split_positionals, wants_help

USAGE = "usage: paddlesft dequantize MODEL DIR [--overwrite] [--dtype TYPE]"


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.verbs import DequantizeConfig

    if wants_help(argv):
        return show_help(f"{__doc__}\n{USAGE}\n", "dequantize", DequantizeConfig)
    (source, target), options = split_positionals(argv, ("MODEL", "DIR"), USAGE)
    config = read_arguments("dequantize", DequantizeConfig, options)

    from rich.console import Console

    from paddlesft.checkpoints.dequantize import dequantize
    from paddlesft.inference.device import use_device

    use_device(config.device)
    report = dequantize(source, target, dtype=config.dtype, overwrite=config.overwrite)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Dequantized {report.layers} layers in {report.seconds:.1f} s")
    console.print(f"  from     {report.source} ({report.formats})", markup=False)
    console.print(f"  type     {report.dtype}")
    console.print(f"  proof    {report.comparison.sentence()}")
    console.print(f"Directory: {report.output}", markup=False)
    console.print(f"Next: paddlesft export-hf {shlex.quote(str(report.output))} NEW_DIR", markup=False)
    return 0
