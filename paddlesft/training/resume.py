"""Going on from a checkpoint: which one, and whether this run is the run that wrote it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle.distributed as dist

from paddlesft.errors import CheckpointError
from paddlesft.training.checkpoint_saving import (
    checkpoint_step,
    complete_checkpoints,
    incomplete_checkpoints,
    what_is_missing,
)

IDENTITY = "run_identity.json"
OVERRIDE = "allow_resume_differences"

# Keys that change neither a step's result nor the order of the data. Every other key counts, so that a new one is
# guarded until somebody decides otherwise.
HARMLESS = frozenset(
    {
        "output_dir", "overwrite_output_dir", "output_signal_dir", "logging_dir", "logging_strategy",
        "logging_steps", "logging_first_step", "report_to", "run_name", "disable_tqdm", "metrics_output_path",
        "log_on_each_node", "hang_timeout", "wandb_api_key", "wandb_http_proxy", "benchmark",
        "skip_memory_metrics", "skip_profile_timer", "do_train", "do_eval", "do_predict", "do_export",
        "evaluation_strategy", "eval_steps", "max_evaluate_steps", "minimum_eval_times", "eval_accumulation_steps",
        "prediction_loss_only", "per_device_eval_batch_size", "eval_with_do_generation", "save_generation_output",
        "eval_dataset_path", "test_dataset_path", "eval_dataset_type", "max_eval_samples", "eval_packing",
        "save_strategy", "save_steps", "unified_checkpoint", "save_total_limit", "save_on_each_node",
        "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "resume_from_checkpoint",
        "allow_resume_differences", "ignore_data_skip", "ignore_load_lr_and_optim", "ignore_save_lr_and_optim",
        "dataloader_num_workers", "lazy", "local_rank", "recompute", "recompute_granularity", "no_recompute_layers",
        "recompute_use_reentrant", "offload_optim", "offload_recompute_inputs", "release_grads", "top_k", "top_p",
        "temperature", "repetition_penalty", "decode_strategy", "max_new_tokens", "min_new_tokens", "stop",
    }
)  # fmt: skip
# How the rows of a step and the model are divided: the same step for any values that make the same batch.
LAYOUT_KEYS = frozenset(
    {
        "per_device_train_batch_size", "gradient_accumulation_steps", "tensor_parallel_degree",
        "pipeline_parallel_degree", "virtual_pp_degree", "sharding", "sharding_parallel_degree", "sequence_parallel",
        "hybrid_parallel_topo_order", "tensor_parallel_config", "pipeline_parallel_config", "sharding_parallel_config",
        "pad_to_max_length",
    }
)  # fmt: skip
# What these keys name is compared by content: the same weights or rows under another path are the same.
COMPARED_BY_CONTENT = frozenset(
    {"model_name_or_path", "dataset_name_or_path", "train_dataset_path", "tokenizer_name_or_path"}
)


@dataclass(frozen=True)
class Difference:
    """One thing in which this run is not the run that wrote the checkpoint.

    Attributes:
        what: a config key, or words such as "base model".
        saved: its value in the checkpoint.
        now: its value in this run.
        breaks: going on would not continue that run.
    """

    what: str
    saved: Any
    now: Any
    breaks: bool


def run_identity(
    config: Mapping[str, Any],
    base_fingerprint: str,
    data_fingerprint: str,
    layout: Mapping[str, int],
    max_steps: int,
    steps_per_epoch: int,
) -> dict[str, Any]:
    """Gather what makes a run the run it is.

    Args:
        config: the resolved config, flat.
        base_fingerprint: of the base model's weights.
        data_fingerprint: of the prepared training rows.
        layout: processes by kind (``data``, ``tensor``, ...).
        max_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of one epoch.

    Returns:
        JSON values; saved as ``run_identity.json`` in every checkpoint.
    """
    plain = json.loads(json.dumps(dict(config), default=str))
    return {
        "config": plain,
        "base": base_fingerprint,
        "data": data_fingerprint,
        "layout": dict(layout),
        "max_steps": max_steps,
        "steps_per_epoch": steps_per_epoch,
    }


def read_identity(checkpoint: Path) -> dict[str, Any]:
    """Read the identity a checkpoint was written with.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = checkpoint / IDENTITY
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{checkpoint} has no {IDENTITY}: it was not written by paddlesft train, so nothing is known about its run."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}).") from error


def compare(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Compare two run identities.

    Returns:
        Every difference, those that break the run first.
    """
    found = []
    for what, key in (("base model", "base"), ("training data", "data")):
        if saved.get(key) != now.get(key):
            found.append(Difference(what, _short(saved.get(key)), _short(now.get(key)), True))
    other_batch = rows_per_step(saved) != rows_per_step(now)
    for key in sorted({*saved.get("layout", {}), *now.get("layout", {})}):
        before, after = saved.get("layout", {}).get(key, 1), now.get("layout", {}).get(key, 1)
        if before != after:
            found.append(Difference(f"{key} parallel processes", before, after, other_batch))
    for key in ("steps_per_epoch", "max_steps"):
        if saved.get(key) != now.get(key) and key not in now["config"]:
            found.append(Difference(key.replace("_", " "), saved.get(key), now.get(key), True))
    before, after = saved.get("config", {}), now["config"]
    for key in sorted({*before, *after}):
        only_one_version_knows_it = key not in before or key not in after
        if only_one_version_knows_it and _asks_for_nothing(before.get(key)) and _asks_for_nothing(after.get(key)):
            continue
        if before.get(key) != after.get(key):
            harmless = key in HARMLESS | COMPARED_BY_CONTENT or (key in LAYOUT_KEYS and not other_batch)
            found.append(Difference(key, before.get(key), after.get(key), not harmless))
    return sorted(found, key=lambda d: not d.breaks)


def rows_per_step(identity: Mapping[str, Any]) -> int:
    """Return the rows of one optimizer step over all processes, of a run's identity."""
    config, layout = identity.get("config", {}), identity.get("layout", {})
    rows = (config.get("per_device_train_batch_size") or 1) * (config.get("gradient_accumulation_steps") or 1)
    return rows * layout.get("data", 1) * layout.get("sharding", 1)


def refuse_parts_of_another_layout(checkpoint: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on from the parts of ranks that had another place in the model.

    Under sharding alone only the optimizer's state is in parts; ``ignore_load_lr_and_optim`` goes on without it.

    Args:
        checkpoint: where the run would go on from.
        saved: the identity that it was written with.
        now: this run's.

    Raises:
        CheckpointError: it says what would be lost and what to do instead.
    """
    before, after = _parts(saved), _parts(now)
    if saved.get("config", {}).get("unified_checkpoint", True) or before == after or before == _parts({}):
        return
    has_whole_weights = before["tensor"] == before["pipeline"] == 1
    if has_whole_weights and now.get("config", {}).get("ignore_load_lr_and_optim"):
        return
    alone = (
        "Or go on with its weights and a fresh optimizer: ignore_load_lr_and_optim: true."
        if has_whole_weights
        else f"Or take the weights alone into a new run: paddlesft merge-shards --model_name_or_path {checkpoint} "
        "--output_path NEW_DIRECTORY, and set model_name_or_path (of an adapter lora_path) to NEW_DIRECTORY and "
        "another output_dir."
    )
    words = "; ".join(f"{what} {before[what]!r}, now {after[what]!r}" for what in before if before[what] != after[what])
    raise CheckpointError(
        f"{checkpoint} holds the part of each rank (unified_checkpoint: false), and this run is divided in another "
        f"way: {words}. The optimizer's state in it (moments, float32 weights) cannot be divided anew and would be "
        "lost. Either go on in the old layout, with unified_checkpoint: true from now on: every layout goes on from "
        f"the next checkpoint. {alone}"
    )


def _parts(identity: Mapping[str, Any]) -> dict[str, Any]:
    config, layout = identity.get("config", {}), identity.get("layout", {})
    degrees = {axis: layout.get(axis, 1) for axis in ("tensor", "pipeline", "sharding")}
    return degrees | {
        "sharding stage": config.get("sharding") or "",
        "virtual_pp_degree": config.get("virtual_pp_degree") or 1,
    }


def agree_on_checkpoint(checkpoint: str | None, output_dir: str) -> None:
    """Make sure that all ranks go on from the same checkpoint; all of them call it.

    Raises:
        CheckpointError: some do not see it, as each looks for it in its own node's files.
    """
    if dist.get_world_size() == 1:
        return
    found: list[Any] = []
    dist.all_gather_object(found, (platform.node(), Path(checkpoint).name if checkpoint else "none"))
    if len({name for _, name in found}) > 1:
        words = "; ".join(f"{host}: {name}" for host, name in dict.fromkeys(found))
        raise CheckpointError(
            f"The nodes do not see the same checkpoint in {output_dir}: {words}. The first rank writes a unified "
            "checkpoint into its own node's files: let output_dir be on storage that all nodes share, or copy the "
            "checkpoint's directory to every node before you go on."
        )


def _asks_for_nothing(value: Any) -> bool:
    return value in (None, False, "", 0, -1, []) or value == {}


def _short(fingerprint: Any) -> str:
    return str(fingerprint)[:19]


def refuse_breaking(checkpoint: Path, differences: Sequence[Difference], override: bool) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        checkpoint: where the run would go on from.
        differences: see ``compare``.
        override: the user has set ``allow_resume_differences``.

    Raises:
        CheckpointError: there are breaking differences and no override; the message lists them.
    """
    breaking = [d for d in differences if d.breaks]
    if not breaking or override:
        return
    rows = "\n".join(f"  {d.what}: {d.saved!r} in the checkpoint, {d.now!r} now" for d in breaking)
    raise CheckpointError(
        f"{checkpoint} was written by a run that differs in what decides its result:\n{rows}\n"
        f"Nothing was changed. Restore these settings to go on; or set {OVERRIDE}: true to go on all the same; or "
        "start a new run with another output_dir or overwrite_output_dir: true."
    )


def find_checkpoint(
    output_dir: str | Path, resume: str | bool | None, overwrite: bool, protect: bool = True
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Decide where a run starts.

    Args:
        output_dir: the run's directory.
        resume: a checkpoint's path; True for the newest complete one, which has to exist; False for a fresh start; None
            for the newest complete one if there is any, as upstream.
        overwrite: ``overwrite_output_dir``: start anew whatever is there.
        protect: refuse other content; False on all ranks but the first, which is writing there already.

    Returns:
        The checkpoint, or None for a fresh start; and what was passed over, each with the reason.

    Raises:
        CheckpointError: the named checkpoint is not complete, there is none to resume from, or the directory has other
            content that a fresh start would mix with.
    """
    output_dir = Path(output_dir)
    if isinstance(resume, str) and resume.lower() in ("true", "false", "none", "auto", ""):
        resume = {"true": True, "false": False}.get(resume.lower())
    if isinstance(resume, str):
        path = Path(resume)
        complete = ", ".join(p.name for p in complete_checkpoints(path.parent)) or "none"
        if not path.is_dir():
            raise CheckpointError(
                f"resume_from_checkpoint: {path} is not a directory. Complete checkpoints beside it: {complete}."
            )
        reason = what_is_missing(path)
        if reason:
            raise CheckpointError(
                f"resume_from_checkpoint: {path} is not a complete checkpoint: {reason}. "
                f"Complete ones beside it: {complete}."
            )
        return path, []
    passed_over = incomplete_checkpoints(output_dir)
    checkpoints = complete_checkpoints(output_dir)
    if resume is True and not checkpoints:
        there = "; ".join(f"{p.name}: {reason}" for p, reason in passed_over) or "none at all"
        raise CheckpointError(f"resume_from_checkpoint: {output_dir} holds no complete checkpoint (found {there}).")
    if resume is True or (resume is None and checkpoints and not overwrite):
        newest = checkpoints[-1]
        step = checkpoint_step(newest) or 0
        return newest, [(p, reason) for p, reason in passed_over if _number(p) > step]
    if protect and not overwrite:
        _refuse_foreign_content(output_dir, passed_over)
    return None, passed_over


def _number(path: Path) -> int:
    return int("".join(c for c in path.name if c.isdigit()) or 0)


def _refuse_foreign_content(output_dir: Path, passed_over: Sequence[tuple[Path, str]]) -> None:
    """Protect everything but the traces of a run that died before its first checkpoint."""
    own = {p.name for p, _ in passed_over} | {"train_log.jsonl", "run_config.yaml", "run_config.origins.json", "runs"}
    own |= {"loss.png", "launch", "log"}
    if output_dir.is_file():
        raise CheckpointError(f"output_dir: {output_dir} is a file. Choose a directory.")
    foreign = [p.name for p in sorted(output_dir.iterdir()) if p.name not in own] if output_dir.is_dir() else []
    if foreign:
        raise CheckpointError(
            f"output_dir: {output_dir} has content that a new run would mix with: {', '.join(foreign[:5])}"
            f"{', ...' if len(foreign) > 5 else ''}. Choose another output_dir, or set overwrite_output_dir: true to "
            "write into this one."
        )
