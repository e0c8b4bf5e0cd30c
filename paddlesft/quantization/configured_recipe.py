"""The recipe that a config asks for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from paddlesft.config.quantization import weight_format
from paddlesft.errors import ConfigError
from paddlesft.models.quantized.formats import TABLES
from paddlesft.quantization.recipe import Recipe
from paddlesft.quantization.smoothing import PieceSearch

if TYPE_CHECKING:
    from paddlesft.config import RunConfig


def configured_recipe(run_config: RunConfig) -> Recipe:
    """Return the recipe of a config whose keys have been checked against each other.

    Raises:
        ConfigError: it asks for no quantization.
    """
    config = run_config.quantization
    if not config.asked:
        raise ConfigError("Nothing to quantize by: set do_ptq, do_gptq or do_awq to true.")
    search = None
    if config.smooth_piecewise_search:
        search = PieceSearch(
            config.smooth_k_piece,
            config.smooth_search_piece,
            config.search_alpha_min,
            config.search_alpha_max,
            config.search_scale_min,
            config.search_scale_max,
        )
    return Recipe(
        quant_type=config.quant_type,
        group_size=config.group_size,
        double_quantization=run_config.model.weight_double_quant and config.quant_type in TABLES,
        skip=tuple(config.skip_list_names),
        other_formats=tuple((name, weight_format(form)) for name, form in (config.mixed_precision or {}).items()),
        gptq=config.do_gptq,
        awq=config.do_awq,
        clip=config.auto_clip,
        shift=config.shift,
        shift_all=config.shift_all_linears,
        shift_sampler=config.shift_sampler,
        smooth=config.smooth,
        smooth_all=config.smooth_all_linears,
        smooth_sampler=config.smooth_sampler,
        search=search,
        activations=config.act_quant_method,
        steps=config.ptq_step,
        gptq_steps=config.gptq_step,
        awq_steps=config.awq_step,
        clip_steps=config.autoclip_step,
        shift_steps=config.shift_step,
        smooth_steps=config.smooth_step,
    )


def refuse_patterns_without_layers(run_config: RunConfig, recipe: Recipe, names: Collection[str]) -> None:
    """Refuse patterns that fit no layer (they would do nothing, and nobody would know) or leave none.

    Args:
        run_config: says where they were given.
        recipe: whose ``skip`` and ``other_formats`` are looked at.
        names: of the Linear layers of the model.

    Raises:
        ConfigError: all such patterns, each with the nearest name; and the names that there are. Or ``skip`` leaves
            nothing to quantize.
    """
    problems = []
    parts = [*dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names)]
    mixed = [pattern for pattern, _ in recipe.other_formats]
    for key, patterns in (("skip_list_names", recipe.skip), ("mixed_precision", mixed)):
        for pattern in patterns:
            if any(re.fullmatch(pattern, name) for name in names):
                continue
            near = _nearest(pattern, names, parts)
            place = run_config.origins[key].place
            problems.append(f"{place}: {key}: {pattern!r} fits the whole name of no Linear layer.{near}")
    if not problems and all(recipe.format_of(name) is None for name in names):
        skip = ", ".join(recipe.skip)
        raise ConfigError(
            f"{run_config.origins['skip_list_names'].place}: skip_list_names: {skip} fits every Linear layer of this "
            "model; none is left to be quantized."
        )
    if problems:
        raise ConfigError("\n".join([*problems, f"The model has (N: number of a layer) {', '.join(parts)}."]))


def _nearest(pattern: str, names: Collection[str], parts: list[str]) -> str:
    if any(re.search(pattern, name) for name in names):
        return f" Did you mean {'.*' + pattern.strip('^$') + '.*'!r}?"
    last = {part.rpartition(".")[2]: part for part in parts}
    word = re.split(r"[^\w]+", pattern.strip(".*$^"))[-1]
    near = difflib.get_close_matches(word, last, n=1)
    return f" Did you mean {'.*' + near[0]!r}?" if near else ""
