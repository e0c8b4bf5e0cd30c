"""paddlesft merge-lora: merge a LoRA adapter into its base model and prove the result.

    paddlesft merge-lora --lora_path output/lora --merge_model_path models/merged
    python tools/merge_lora_params.py --model_name_or_path BASE --lora_path LORA --merge_model_path DIR

The base may be left out when the adapter was trained by this package: the adapter names it. The merged directory
appears only when its logits equal those of base + adapter within the bound of its type.

An adapter that was trained over quantized weights (QLoRA) needs --base_precision:

    dequantized   the float weights that the quantized ones stand for: the result computes what training saw
    full          the weights before they were rounded: the result differs from that, the report says by how much
"""

from __future__ import annotations

import shlex

from paddlesft.cli.verb_arguments import read_arguments, show_help, wants_help
from paddlesft.errors import ConfigError


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.verbs import MergeLoraConfig

    if wants_help(argv):
        return show_help(__doc__, "merge_lora", MergeLoraConfig)
    config = read_arguments("merge_lora", MergeLoraConfig, argv)
    for key in ("lora_path", "merge_model_path"):
        if getattr(config, key) is None:
            raise ConfigError(
                f"{key} is missing. "
                "Example: paddlesft merge-lora --lora_path output/lora --merge_model_path models/merged"
            )

    from paddlesft.checkpoints.merge_lora import merge_lora
    from paddlesft.inference.device import use_device

    use_device(config.device)
    report = merge_lora(
        config.model_name_or_path,
        config.lora_path,
        config.merge_model_path,
        dtype=config.dtype,
        overwrite=config.overwrite,
        force=config.force,
        base_precision=config.base_precision,
    )
    _show(report)
    return 0


def _show(report: object) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    checked = {"matches": "fingerprint matches", "unknown": "fingerprint unknown", "forced": "FORCED"}
    precise = {
        None: "",
        "full": f", in full precision; the adapter was trained over {report.formats}",
        "dequantized": f", dequantized from {report.formats}",
    }[report.precision]
    whole = f", {report.replaced} weights replaced" if report.replaced else ""
    console.print(f"Merged in {report.seconds:.1f} s")
    console.print(f"  base     {report.base} ({checked[report.base_check]}){precise}", markup=False)
    console.print(f"  update   {report.updated} layers, scaling {report.scaling:g}{whole}")
    console.print(f"  type     {report.dtype} (summed in float32)")
    console.print(f"  adapter  moves the logits by up to {report.effect:.2e}")
    console.print(f"  proof    {report.comparison.sentence()}")
    if report.from_training is not None:
        far = report.from_training
        console.print(
            f"  training computed with other weights: largest logit difference to it {far.max_abs_diff:.2e}, same "
            f"first choice at {far.same_top:.1%} of positions"
        )
    for notice in report.notices:
        console.print(f"Note: {notice}", markup=False)
    console.print(f"Directory: {report.output}", markup=False)
    console.print(f"Next: paddlesft chat --model_name_or_path {shlex.quote(str(report.output))}", markup=False)
