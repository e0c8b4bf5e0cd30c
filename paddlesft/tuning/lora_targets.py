"""Which layers LoRA can stand beside, and which of them a config means, by their names in the whole model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

import paddle.distributed as dist
from paddle import nn
from paddle.distributed import fleet
from paddle.distributed.fleet.meta_parallel import ColumnParallelLinear, PipelineLayer, RowParallelLinear
from paddlenlp.transformers import linear_utils

from paddlesft.errors import ConfigError
from paddlesft.models.families import Family
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.parallel.division import Division

PLAIN_NAME = re.compile(r"[\w.]+")
LINEARS = (
    nn.Linear,
    ColumnParallelLinear,
    RowParallelLinear,
    linear_utils.ColumnSequenceParallelLinear,
    linear_utils.RowSequenceParallelLinear,
    QuantizedLinear,
)


def linear_layers(model: nn.Layer) -> dict[str, str]:
    """Return the Linear layers of a model that LoRA can work on, divided among ranks or not.

    Returns:
        Name in the whole model -> name in this one; they differ in the stages of a pipeline, which number their layers.
    """
    linears = {name: layer for name, layer in model.named_sublayers() if isinstance(layer, LINEARS)}
    if not isinstance(model, PipelineLayer):
        return {name: name for name in linears}
    weights = {id(tensor): name for name, tensor in Division(model).own.items()}
    return {weights[id(layer.weight)].removesuffix(".weight"): name for name, layer in linears.items()}


def linear_names(model: nn.Layer) -> list[str]:
    """Return the names of ``linear_layers`` in the whole model; of a pipeline, those of all stages, which call it."""
    return names_of_all_stages(model, linear_layers(model))


def names_of_all_stages(model: nn.Layer, names: Iterable[str]) -> list[str]:
    """Put the names that the stages of a pipeline give together, in their order; return those of another model."""
    if not isinstance(model, PipelineLayer):
        return list(names)
    stages: list[list[str]] = []
    dist.all_gather_object(stages, list(names), group=_stages_group())
    return list(dict.fromkeys(name for stage in stages for name in stage))


def _stages_group() -> dist.communication.group.Group:
    return fleet.get_hybrid_communicate_group().get_pipe_parallel_group()


def target_patterns(model: nn.Layer, family: Family, targets: str | Sequence[str] | None) -> list[str]:
    """Turn what a config says about LoRA targets into regular expressions over layer names.

    Args:
        model: the base model; all stages of a pipeline call it.
        family: its row of the family table.
        targets: None for the family's usual layers; ``"all"`` for every Linear of the decoder; a layer name
            (``q_proj`` stands for the q_proj of every layer), a regular expression that fits whole names, or a list of
            either.

    Returns:
        The expressions, each of which fits at least one Linear of the whole model.

    Raises:
        ConfigError: an entry fits nothing; the message lists the Linear names there are.
    """
    names = linear_names(model)
    leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
    if targets is None:
        patterns = [p for p in family.lora_target_modules if any(re.fullmatch(p, name) for name in names)]
        if not patterns:
            raise ConfigError(
                f"lora_target_modules: none of the usual targets of family {family.name} is a Linear layer of this "
                f"model. Its Linear layers: {', '.join(leaves) or 'none'}. Set lora_target_modules to some of them."
            )
        return patterns
    entries = [targets] if isinstance(targets, str) else list(targets)
    patterns = []
    for entry in entries:
        if entry in ("all", "all-linear"):
            patterns += [rf"(?:.*\.)?{re.escape(leaf)}" for leaf in leaves]
            continue
        pattern = rf"(?:.*\.)?{re.escape(entry)}" if PLAIN_NAME.fullmatch(entry) else entry
        try:
            fits = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise ConfigError(
                f"lora_target_modules: {entry!r} is not a regular expression ({error}). Give 'all', layer names out of "
                f"{', '.join(leaves)}, or an expression that fits whole names such as '.*self_attn.*'."
            ) from error
        if not fits:
            near = difflib.get_close_matches(entry, leaves, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"lora_target_modules: {entry!r} fits no Linear layer of this model.{hint} Its Linear layers: "
                f"{', '.join(leaves)} (for example {names[0]}). 'all' takes every one of them."
            )
        if pattern == entry:  # it may fit other layers too, at the first of which PaddleNLP would stop
            ends = "|".join(re.escape(leaf) for leaf in leaves)
            pattern = rf"(?=(?:.*\.)?(?:{ends})$)(?:{pattern})"
        patterns.append(pattern)
    return list(dict.fromkeys(patterns))


def refuse_idle_stages(model: nn.Layer, patterns: Sequence[str]) -> None:
    """Refuse targets that leave a stage of a pipeline with nothing to train; all stages call it.

    Paddle's optimizers (3.3.1) fail where there is no parameter at all.

    Raises:
        ConfigError: there is such a stage.
    """
    if not isinstance(model, PipelineLayer):
        return
    fits = any(re.fullmatch(pattern, name) for pattern in patterns for name in linear_layers(model))
    stages: list[bool] = []
    dist.all_gather_object(stages, fits, group=_stages_group())
    idle = [str(stage) for stage, fit in enumerate(stages) if not fit]
    if idle:
        raise ConfigError(
            f"lora_target_modules: found targets in the layers of some pipeline stages only; none are in stage "
            f"{' and '.join(idle)} of {len(stages)}, which would have nothing to train. Take layers of every stage "
            "(lora_target_modules: all), or set pipeline_parallel_degree to 1."
        )
