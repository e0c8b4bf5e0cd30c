"""Rules about quantization that look at several keys at once, or into the values of one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from paddlesft.config.derived import number_of_processes
from paddlesft.config.fields import default_of
from paddlesft.config.quantization import WEIGHT_FORMATS, weight_format

if TYPE_CHECKING:
    from paddlesft.config.resolve import RunConfig

Finding = tuple[tuple[str, ...], str]  # as in rules.py

BUILT = ("a8w8", "llm.int8", "weight_only_int8", "weight_only_int4", "nf4", "fp4")
WEIGHTS_ONLY = ("weight_only_int8", "weight_only_int4", "nf4", "fp4")
TABLES = ("nf4", "fp4")
DEGREES = ("tensor_parallel_degree", "pipeline_parallel_degree", "sharding_parallel_degree")

# Keys that only count together with another one: when it is off, whoever sets them is told.
NEEDS: dict[str, tuple[str, ...]] = {
    "do_gptq": ("gptq_step",),
    "do_awq": ("awq_step",),
    "auto_clip": ("autoclip_step",),
    "shift": ("shift_all_linears", "shift_sampler", "shift_step"),
    "smooth": ("smooth_all_linears", "smooth_sampler", "smooth_step", "smooth_piecewise_search"),
    "smooth_piecewise_search": (
        "smooth_k_piece", "smooth_search_piece", "search_alpha_min", "search_alpha_max", "search_scale_min",
        "search_scale_max",
    ),
    "do_quant_debug": ("test_sample",),
}  # fmt: skip
OF_ANY = (
    "quant_type", "weight_quant_method", "group_size", "skip_list_names", "mixed_precision", "max_ppl_increase",
    "auto_clip",
)  # fmt: skip
OF_ACTIVATIONS = ("ptq_step", "shift", "smooth", "act_quant_method")


def quantization_problems(run: RunConfig) -> Iterator[Finding]:
    """Yield every contradiction between keys about quantization."""
    yield from _patterns(run)
    if not run.quantization.asked:
        return
    for rule in (_type, _groups, _search, _whole_model, _one_process, _data):
        yield from rule(run)


def idle_quantization_keys(run: RunConfig) -> Iterator[str]:
    """Yield a notice for each key that was set but does not count in this run."""
    config = run.quantization

    def idle(keys: tuple[str, ...], why: str) -> Iterator[str]:
        for key in keys:
            value = getattr(config, key)
            if run.was_set(key) and value not in (default_of(run.find(key)[1]), False):
                yield f"{run.origins[key].place}: {key} has no effect {why}."

    if not config.asked:
        yield from idle((*OF_ANY, *OF_ACTIVATIONS), "while do_ptq, do_gptq and do_awq are off")
    elif config.quant_type != "a8w8":
        dynamic = config.quant_type == "llm.int8"
        why = "inputs are rounded as they come" if dynamic else "only weights are quantized"
        yield from idle(OF_ACTIVATIONS, f"with quant_type {config.quant_type}: {why}")
    for switch, keys in NEEDS.items():
        if not getattr(config, switch):
            yield from idle(keys, f"while {switch} is off")


def _patterns(run: RunConfig) -> Iterator[Finding]:
    config = run.quantization
    mixed = config.mixed_precision or {}
    for key, patterns in (("skip_list_names", config.skip_list_names), ("mixed_precision", mixed)):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                yield (
                    (key,),
                    f"{key}: {pattern!r} is no regular expression ({error}). Allowed: expressions for whole names of "
                    "layers, such as .*down_proj or .*layers.0.*",
                )
    for pattern, spelling in mixed.items():
        if weight_format(spelling) is None:
            near = difflib.get_close_matches(spelling.lower(), WEIGHT_FORMATS, n=1)
            yield (
                ("mixed_precision",),
                f"mixed_precision: found {spelling!r} for {pattern!r}; allowed: int8, int4, nf4, fp4 (skip_list_names "
                "leaves layers as they are)." + (f" Did you mean {near[0]!r}?" if near else ""),
            )


def _type(run: RunConfig) -> Iterator[Finding]:
    config, kind = run.quantization, run.quantization.quant_type
    if config.do_ptq and config.do_gptq:
        yield (
            ("do_ptq", "do_gptq"),
            "do_ptq and do_gptq are both true; one of them rounds the weights. Keep do_gptq for the better 4-bit "
            "weights, do_ptq for a8w8 or for rounding to the nearest.",
        )
    if kind not in BUILT:
        what = "a quantized key/value cache" if kind == "a8w8c8" else "fp8"
        yield (
            ("quant_type",),
            f"quant_type: found {kind}; {what} is not built yet in this version. Allowed: {', '.join(BUILT)}.",
        )
        return
    method = "do_gptq" if config.do_gptq else "do_awq"
    if (config.do_gptq or config.do_awq) and kind not in WEIGHTS_ONLY:
        yield (
            ("quant_type", method),
            f"quant_type: found {kind}; {method} rounds weights only. Allowed with it: {', '.join(WEIGHTS_ONLY)}.",
        )


def _groups(run: RunConfig) -> Iterator[Finding]:
    config = run.quantization
    if run.was_set("weight_quant_method") and run.was_set("group_size") and config.group_size is not None:
        groupwise = config.weight_quant_method == "groupwise"
        if groupwise != bool(config.group_size):
            yield (
                ("weight_quant_method", "group_size"),
                f"weight_quant_method {config.weight_quant_method} contradicts group_size {config.group_size}: groups "
                "have at least one input, and one scale for each output is group_size 0. Keep one of the two keys.",
            )
    if config.group_size == 0 and config.quant_type in TABLES:
        yield (
            ("group_size", "quant_type"),
            f"group_size: found 0; {config.quant_type} has scales for groups of inputs. Allowed: 1 or more; 64 is "
            "usual.",
        )
    if config.group_size and config.quant_type in ("a8w8", "llm.int8"):
        yield (
            ("group_size", "weight_quant_method", "quant_type"),
            f"group_size: found {config.group_size}; where inputs are rounded to 8 bits ({config.quant_type}), weights "
            "have one scale for each output. Allowed: 0, or a quant_type of weights only.",
        )


def _search(run: RunConfig) -> Iterator[Finding]:
    config = run.quantization
    for low, high in (("search_alpha_min", "search_alpha_max"), ("search_scale_min", "search_scale_max")):
        if getattr(config, low) > getattr(config, high):
            yield (low, high), f"{low} {getattr(config, low):g} is more than {high} {getattr(config, high):g}."


def _whole_model(run: RunConfig) -> Iterator[Finding]:
    model, config, out = run.model, run.quantization, run.training.output_dir or "OUTPUT_DIR"
    for switch, next_step in (
        (
            "lora",
            f"train with {config.asked[0]}: false, then: paddlesft merge-lora --lora_path {out} --merge_model_path "
            f"{out}_merged; then: paddlesft quantize CONFIG lora=false do_train=false "
            f"model_name_or_path={out}_merged output_dir={out}_quantized.",
        ),
        (
            "prefix_tuning",
            "a prefix cannot be merged into the weights; train lora or all weights where the result is to be "
            "quantized.",
        ),
    ):
        if getattr(model, switch):
            yield (
                (switch, *config.asked),
                f"{config.asked[0]} quantizes a whole model, {switch} trains an adapter beside one: {next_step}",
            )


def _one_process(run: RunConfig) -> Iterator[Finding]:
    asked = run.quantization.asked[0]
    advice = "Train without it, then run paddlesft quantize on output_dir." if run.training.do_train else ""
    degrees = [key for key in DEGREES if getattr(run.training, key) > 1]
    if degrees:
        found = ", ".join(f"{key} {getattr(run.training, key)}" for key in degrees)
        advice = advice or "Set them to 1: it needs no more than one card."
        yield (*degrees, asked), f"{asked} runs in one process on one device; found {found}. {advice}"
    elif number_of_processes() > 1:
        advice = advice or "Start it without a launcher: paddlesft quantize CONFIG."
        yield (
            (asked,),
            f"{asked} runs in one process on one device; found {number_of_processes()} processes. {advice}",
        )


def _data(run: RunConfig) -> Iterator[Finding]:
    config, data, training = run.quantization, run.data, run.training
    named = bool(data.dataset_name_or_path or data.train_dataset_path)
    if config.calibrates and not named:
        methods = [key for key in ("do_gptq", "do_awq", "auto_clip") if getattr(config, key)]
        method = (methods or [config.quant_type])[0]
        yield (
            ("dataset_name_or_path", "train_dataset_path", "quant_type", "do_gptq", "do_awq", "auto_clip"),
            f"{method} looks at rows to calibrate on, and no data is named. Set dataset_name_or_path (a directory with "
            "quant.json or train.json, or a file) or train_dataset_path; weight_only_int8, nf4 and fp4 need no data.",
        )
    if config.max_ppl_increase is not None and not (named or data.eval_dataset_path or data.test_dataset_path):
        yield (
            ("max_ppl_increase", "dataset_name_or_path", "eval_dataset_path"),
            "max_ppl_increase needs rows to measure the perplexity on, and no data is named. Set eval_dataset_path or "
            "dataset_name_or_path.",
        )
    if training.do_predict and not training.do_train:
        yield (
            ("do_predict", config.asked[0]),
            f"do_predict answers rows with a model that is trained, {config.asked[0]} quantizes one. Set do_predict: "
            "false and answer them with the result: paddlesft predict --model_name_or_path "
            f"{training.output_dir or 'OUTPUT_DIR'} --data_file FILE.",
        )
