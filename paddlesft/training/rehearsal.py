"""What a rehearsal runs: a production config made small, without changing how it is divided.

``plan_rehearsal`` decides and says what is made smaller, what is set differently and what is therefore not rehearsed;
``write_rehearsal`` writes the small model, its data and the configs: of one process with the same global batch, of the
ranks, and of ranks that resume their checkpoint. ``rehearsal_runs.py`` runs and compares them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.config.fields import default_of
from paddlesft.data.sources import has_split
from paddlesft.directories import write_json
from paddlesft.errors import DataError, UserError
from paddlesft.models.directory import copy_tokenizer
from paddlesft.models.family import Family
from paddlesft.models.shrink import Division, shrink_config, write_random_model
from paddlesft.parallel.check_layout import check_layout, derive_layout, fewest_processes
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.shrink_layout import shrink_degrees
from paddlesft.training.rehearsal_data import SPECIAL_IDS, words_of, write_rows, write_standin_tokenizer

if TYPE_CHECKING:
    from paddlesft.config.resolve import RunConfig

LENGTH = 128  # tokens of a row
FEW_ROWS = 64
EVAL_ROWS = 8
MICRO_BATCH = 2
ACCUMULATION = 4
PREFIX_TOKENS = 8
# Large steps, and an epsilon beside which AdamW does not hide the size of gradients: a wrong gradient shows in the loss
EPSILON = 1e-2
LEARNING_RATES = {"full": 1e-2, "lora": 1e-1, "prefix": 1.0}  # adapters have smaller gradients, hidden by epsilon
VOCABULARY_FILES = (  # one of which every kind of tokenizer has
    "tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken",
    "ice_text.model", "cog-pretrain.model", "vocab.txt",
)  # fmt: skip

# settings of every rehearsal; those that turn something off are named when the config had it on
TURNED_OFF: dict[str, tuple[Any, str]] = {
    "bf16": (False, ""),
    "fp16": (False, ""),
    "fp16_opt_level": ("O1", ""),
    "amp_master_grad": (False, ""),
    "dtype": ("float32", ""),
    "use_flash_attention": (False, "flash attention"),
    "use_fused_rms_norm": (False, "fused kernels"),
    "use_fused_rope": (False, "fused kernels"),
    "use_fused_linear": (False, "fused kernels"),
    "use_fused_dropout_add": (False, "fused kernels"),
    "offload_optim": (False, "offloading to the host"),
    "lora_dropout": (0.0, "dropout (each rank draws masks of its own)"),
    "lora_path": (None, "starting from lora_path"),
    "prefix_path": (None, "starting from prefix_path"),
    "eval_with_do_generation": (False, "generating replies in evaluations"),
    "save_generation_output": (False, ""),
    "do_predict": (False, "do_predict"),
    "resume_from_checkpoint": (None, "resume_from_checkpoint"),
    "load_best_model_at_end": (False, "load_best_model_at_end"),
    "metric_for_best_model": (None, ""),
    "greater_is_better": (None, ""),
    "minimum_eval_times": (None, ""),
    "dataloader_num_workers": (0, "worker processes of the data loader"),
    "benchmark": (False, ""),
    "ignore_save_lr_and_optim": (False, ""),
    "ignore_load_lr_and_optim": (False, ""),
    "ignore_data_skip": (False, ""),
    "no_cuda": (False, ""),
    "report_to": (None, "report_to"),
    "logging_dir": (None, ""),
    "metrics_output_path": (None, ""),
}
FIXED = {
    "device": "cpu", "overwrite_output_dir": True, "do_train": True, "do_eval": True, "evaluation_strategy": "steps",
    "max_evaluate_steps": -1, "save_total_limit": None, "logging_strategy": "steps", "logging_steps": 1,
    "truncation": "truncate_left_prompt", "num_train_epochs": 1.0, "warmup_steps": 0, "adam_epsilon": EPSILON,
    "tokenizer_name_or_path": None,
}  # fmt: skip
UNDIVIDED = {
    "tensor_parallel_degree": -1, "pipeline_parallel_degree": -1, "sharding_parallel_degree": -1, "sharding": "",
    "sequence_parallel": False, "virtual_pp_degree": 1, "hybrid_parallel_topo_order": None,
    "tensor_parallel_config": "", "pipeline_parallel_config": "", "sharding_parallel_config": "",
}  # fmt: skip
NEVER = ("memory", "speed", "NCCL", "fused kernels", "the rounding of half precision")


@dataclass
class Rehearsal:
    """A planned rehearsal.

    Attributes:
        real: the layout of the run.
        small: the layout that is rehearsed.
        family: the model's row of the family table.
        model_config: content of the small model's config.json.
        run_config: of the ranks; paths that ``write_rehearsal`` creates are not in it yet.
        steps: optimizer steps.
        shrunk: lines about what is smaller than in the run.
        changed: lines about what is set differently.
        not_rehearsed: what a PASS says nothing about.
        tokenizer: directory of the model's tokenizer; None: random token ids.
        own_data: the rows are the user's.
    """

    real: Layout
    small: Layout
    family: Family
    model_config: dict[str, Any]
    run_config: RunConfig
    steps: int
    shrunk: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    not_rehearsed: list[str] = field(default_factory=list)
    tokenizer: Path | None = None
    own_data: bool = False


def plan_rehearsal(
    run: RunConfig, world_size: int | None, model_config: Mapping[str, Any], family: Family,
    tokenizer: Path | None = None, steps: int = 6, most_processes: int = 8,
) -> Rehearsal:  # fmt: skip
    """Check the layout of a run and decide what its rehearsal is.

    Args:
        run: the resolved config; it is not changed.
        world_size: processes of the run; None: the fewest that the config's degrees fit.
        model_config: content of the model's config.json in Paddle's layout.
        family: the model's row of the family table.
        tokenizer: a directory with the model's tokenizer, if there is one on this machine.
        steps: optimizer steps of the rehearsal.
        most_processes: that this machine may start.

    Raises:
        ConfigError: the layout of the run is impossible; all problems.
        UserError: nothing is divided, or it cannot be rehearsed with so few processes.
    """
    world_size = world_size or fewest_processes(run)
    real = check_layout(run, world_size, model_config, family)
    if real.world_size == 1:
        raise UserError(
            "There is nothing to rehearse: the config divides nothing, and the run has one process. Give the number of "
            "processes of the run: --world_size N."
        )
    if family.one_reply_per_row and tokenizer is None:
        raise UserError(
            f"Models of family {family.name} find the place of a reply by tokens of their own tokenizer, which is not "
            "on this machine. Copy its files here and name the directory: tokenizer_name_or_path=DIR."
        )
    degrees, shrunk = shrink_degrees(real, most_processes)
    before, after = (
        Division(one["tensor"], one["pipeline"], real.virtual)
        for one in ({"tensor": real.tensor, "pipeline": real.pipeline}, degrees)
    )
    small_config = shrink_config(
        model_config, family, before, after, family.plan(model_config).vocab if tokenizer else None
    )
    if tokenizer is None:
        ids = [key for key in small_config if key.endswith("_token_id")]
        small_config = {key: value for key, value in small_config.items() if key not in ids} | SPECIAL_IDS
    plan = Rehearsal(real, real, family, small_config, copy.deepcopy(run), steps, tokenizer=tokenizer)
    plan.shrunk = [*shrunk, *_smaller_model(family, model_config, small_config)]
    plan.own_data = tokenizer is not None and _has_rows(run)
    _set_batches(plan, degrees)
    _set_method(plan, degrees["tensor"])
    _set_rest(plan)
    plan.small = check_layout(plan.run_config, _product(degrees), small_config, family)
    derive_layout(plan.run_config, plan.small)
    plan.not_rehearsed += NEVER
    plan.not_rehearsed = list(dict.fromkeys(plan.not_rehearsed))
    return plan


def find_tokenizer(*directories: str | Path | None) -> Path | None:
    """Return the first of some directories that is on this machine and holds a tokenizer."""
    for name in directories:
        path = Path(name).expanduser() if name else None
        if path is not None and path.is_dir() and any((path / file).is_file() for file in VOCABULARY_FILES):
            return path
    return None


def write_rehearsal(plan: Rehearsal, directory: Path) -> dict[str, Path]:
    """Write the small model, its data and the configs.

    Args:
        plan: of ``plan_rehearsal``.
        directory: an existing directory.

    Returns:
        The config files: ``one`` for a single process, ``ranks``, and ``resumed`` for ranks that go on from the
        checkpoint which the others have saved half-way.
    """
    model = directory / "model"
    model.mkdir()
    write_random_model(model, plan.model_config, plan.family, plan.run_config.training.seed)
    vocabulary = plan.family.plan(plan.model_config).vocab
    if plan.tokenizer is None:
        write_standin_tokenizer(model, vocabulary)
    else:
        copy_tokenizer(plan.tokenizer, model)
    changes: dict[str, Any] = {"model_name_or_path": str(model)}
    if not plan.own_data:
        data = directory / "data"
        data.mkdir()
        words = words_of(vocabulary) if plan.tokenizer is None else None
        rows = max(FEW_ROWS, plan.small.global_batch * 2) + 1  # the last step of an epoch is not full
        write_rows(data / "train.json", rows, words, 1)
        write_rows(data / "dev.json", EVAL_ROWS + 1, words, 2)
        changes |= {"dataset_name_or_path": str(data)}
    half = plan.run_config.training.eval_steps
    saving = {**changes, "save_strategy": "steps", "save_steps": half}
    rows = {"gradient_accumulation_steps": plan.small.accumulation * plan.small.data_ranks}
    checkpoint = directory / "run-ranks" / f"checkpoint-{half}"
    variants = {
        "one": {**changes, **UNDIVIDED, **rows, "save_strategy": "no"},
        "ranks": saving,
        "resumed": {**saving, "resume_from_checkpoint": str(checkpoint), "overwrite_output_dir": False},
    }
    files = {}
    for name, extra in variants.items():
        files[name] = directory / f"{name}.json"
        content = {**_settings(plan.run_config), **extra, "output_dir": str(directory / f"run-{name}")}
        write_json(files[name], {key: value for key, value in content.items() if value is not None})
    return files


def _settings(run: RunConfig) -> dict[str, Any]:
    """Keys that have another value than the default."""
    flat = run.flat()
    return {key: value for key, value in flat.items() if value != default_of(run.find(key)[1])}


def _product(degrees: Mapping[str, int]) -> int:
    product = 1
    for degree in degrees.values():
        product *= degree
    return product


def _smaller_model(family: Family, config: Mapping[str, Any], small: Mapping[str, Any]) -> list[str]:
    before, after = family.plan(config), family.plan(small)
    names = {"layers": "layers", "hidden": "hidden size", "heads": "attention heads", "kv_heads": "key/value heads",
             "ffn": "feed-forward width", "vocab": "vocabulary"}  # fmt: skip
    sizes = [
        f"{text} {getattr(before, name)} -> {getattr(after, name)}"
        for name, text in names.items()
        if getattr(before, name) != getattr(after, name)
    ]
    return [f"model: {', '.join(sizes)}; random weights"]


def _has_rows(run: RunConfig) -> bool:
    try:
        return has_split(run.data, "train")
    except DataError:
        return False


def _set_batches(plan: Rehearsal, degrees: Mapping[str, int]) -> None:
    run, real = plan.run_config, plan.real
    enough = max(ACCUMULATION, 2 * degrees["pipeline"])
    wanted = {
        "tensor_parallel_degree": degrees["tensor"],
        "pipeline_parallel_degree": degrees["pipeline"],
        "sharding_parallel_degree": degrees["sharding"],
        "per_device_train_batch_size": min(real.micro_batch, MICRO_BATCH),
        "gradient_accumulation_steps": min(real.accumulation, enough),
        "per_device_eval_batch_size": min(run.training.per_device_eval_batch_size, 2 * MICRO_BATCH),
        "max_length": min(run.data.max_length, LENGTH),
        "src_length": min(run.data.src_length, LENGTH // 2),
    }
    wanted["src_length"] = min(wanted["src_length"], wanted["max_length"] // 2)
    if real.sequence_parallel:
        wanted["max_length"] = -(-wanted["max_length"] // degrees["tensor"]) * degrees["tensor"]
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length"):
        found = run.flat()[key]
        if found != wanted[key]:
            plan.shrunk.append(f"{key}: {found} -> {wanted[key]}")
    _put(run, {key: value for key, value in wanted.items() if value != run.flat()[key]})
    if plan.own_data:
        rows = max(FEW_ROWS, plan.steps * real.data_ranks * 4)
        few = {"max_train_samples": min(run.data.max_train_samples or rows, rows)}
        few["max_eval_samples"] = min(run.data.max_eval_samples or EVAL_ROWS, EVAL_ROWS)
        if not has_split(run.data, "eval") and not run.data.eval_split_ratio:
            few |= {"eval_split_ratio": 0.2}
        plan.shrunk.append(f"data: the first {few['max_train_samples']} rows, cut to {wanted['max_length']} tokens")
        _put(run, few)
        return
    why = "the tokenizer is not on this machine" if plan.tokenizer is None else "the data are not on this machine"
    plan.changed.append(f"rows of random {'token ids' if plan.tokenizer is None else 'words'}: {why}")
    _put(run, {
        "train_dataset_path": None, "eval_dataset_path": None, "test_dataset_path": None, "train_dataset_prob": None,
        "train_dataset_type": "auto", "eval_dataset_type": "auto", "mix_strategy": "concat", "column_map": None,
        "eval_split_ratio": None, "max_train_samples": None, "max_eval_samples": None,
    })  # fmt: skip
    if plan.tokenizer is None:
        _put(run, {"chat_template": None, "system_prompt": None})


def _set_method(plan: Rehearsal, tensor: int) -> None:
    run, model = plan.run_config, plan.run_config.model
    if model.prefix_tuning and model.num_prefix_tokens > PREFIX_TOKENS:
        tokens = -(-PREFIX_TOKENS // tensor) * tensor
        plan.shrunk.append(f"num_prefix_tokens: {model.num_prefix_tokens} -> {tokens}")
        _put(run, {"num_prefix_tokens": tokens})
    if model.prefix_projection and model.prefix_projection_hidden_size:
        width = plan.family.plan(plan.model_config).hidden
        plan.shrunk.append(f"prefix_projection_hidden_size: {model.prefix_projection_hidden_size} -> {width}")
        _put(run, {"prefix_projection_hidden_size": width})
    layers = plan.family.plan(plan.model_config).layers
    kept = run.training.no_recompute_layers
    if kept and max(kept) >= layers:
        _put(run, {"no_recompute_layers": [layer for layer in kept if layer < layers] or None})


def _set_rest(plan: Rehearsal) -> None:
    run, flat = plan.run_config, plan.run_config.flat()
    for key, (value, name) in TURNED_OFF.items():
        if name and flat[key] not in (value, [], None):
            plan.not_rehearsed.append(name)
        _put(run, {key: value})
    if "offload" in run.training.sharding:
        plan.not_rehearsed.append("offloading to the host")
        _put(run, {"sharding": run.training.sharding.partition(" ")[0]})
    steps = plan.steps
    rate = LEARNING_RATES["prefix" if run.model.prefix_tuning else "lora" if run.model.lora else "full"]
    _put(run, {**FIXED, "max_steps": steps, "eval_steps": max(steps // 2, 1), "learning_rate": rate})
    plan.changed.append(
        f"{steps} steps with learning_rate {rate:g} and adam_epsilon {EPSILON:g}, so that a wrong gradient "
        "or a wrong factor of one shows in the next losses"
    )


def _put(run: RunConfig, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        group, _ = run.find(key)
        setattr(group, key, value)
        run.origins[key] = dataclasses.replace(run.origins[key], kind="derived", note="rehearsal")
