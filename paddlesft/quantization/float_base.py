"""The model that is quantized: what it may not be, found before and after it is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import paddle
from paddle import nn

from paddlesft.errors import ConfigError, ModelDirectoryError
from paddlesft.models.provenance import read_provenance
from paddlesft.models.quantized.origin import merge_command, refuse_quantized
from paddlesft.models.resolve import find_model

if TYPE_CHECKING:
    from paddlesft.config import RunConfig

SPOKEN = ("chat_template", "system_prompt")  # what a directory says about how it was trained to be spoken to


def check_base(run_config: RunConfig) -> Path:
    """Refuse a base that cannot be quantized, and an output directory that would damage it; nothing is loaded.

    Returns:
        The base as it was published, for Hugging Face directories before their conversion.

    Raises:
        ModelDirectoryError: the base is an adapter, or quantized already, or not there.
        ConfigError: the output directory is the base's, lies in it or holds it.
    """
    name = run_config.model.model_name_or_path or ""
    given = Path(name).expanduser()
    for kind in ("lora", "prefix"):
        if (given / f"{kind}_config.json").is_file() and not (given / "config.json").is_file():
            instead = _instead(kind, given)
            raise ModelDirectoryError(f"{given} is a {kind} adapter, and a whole model is quantized. {instead}")
    base = find_model(name)
    refuse_quantized(base, "for quantization, because rounding twice adds both errors")
    output = Path(run_config.training.output_dir or "").expanduser().resolve()
    inside = base.resolve()
    if output == inside or inside in output.parents or output in inside.parents:
        how = "is" if output == inside else "lies in" if inside in output.parents else "holds"
        raise ConfigError(
            f"output_dir: {run_config.training.output_dir} {how} the directory of the model that is quantized "
            f"({base}). Choose another one: the model is left as it is."
        )
    return base


def speak_as_trained(run_config: RunConfig, base: Path) -> None:
    """Take template and system prompt from what the base says it was trained with, unless the config names others.

    Args:
        run_config: changed.
        base: a model directory.
    """
    told = read_provenance(base)
    for key in SPOKEN:
        if told.get(key) and not getattr(run_config.data, key):
            run_config.derive(key, told[key], "the model was trained with it")


def refuse_not_finite(model: nn.Layer, directory: Path) -> None:
    """Refuse a model whose weights are not numbers: no scale can be found for them.

    Raises:
        ModelDirectoryError: some are NaN or infinite; the first three are named.
    """
    broken = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not bool(paddle.isfinite(tensor).all())
    ]
    if broken:
        raise ModelDirectoryError(
            f"{directory} has weights that are NaN or infinite: {', '.join(broken[:3])}"
            f"{f' and {len(broken) - 3} more' if len(broken) > 3 else ''}. Such a model cannot be quantized: go back "
            "to a checkpoint from before its training diverged."
        )


def _instead(kind: str, adapter: Path) -> str:
    if kind == "prefix":
        return "A prefix cannot be merged into the weights: quantize a base, a fine-tuned or a LoRA-merged model."
    merged = f"{adapter}_merged"
    return f"Merge it first: {merge_command(adapter, merged)}; then set model_name_or_path to {shlex.quote(merged)}."
