"""What the weights of a sharded checkpoint become: every part is checked and placed before anything is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.checkpoints.shard_files import Rank, ShardFiles
from paddlesft.errors import CheckpointError
from paddlesft.models.families import family_of
from paddlesft.models.family import Family
from paddlesft.models.load import ONE_PROCESS
from paddlesft.models.pdparams import walk_pickle
from paddlesft.models.shapes import Skeleton, full_name, skeleton_of
from paddlesft.models.tensor_division import (
    LOW_RANK,
    Division,
    adapter_division,
    as_bits,
    division_of,
    prefix_divisions,
    tensor_parallel_actions,
)
from paddlesft.models.weights import NewTensor

SHOWN = 6


@dataclass
class Piece:
    """One weight of the result.

    Attributes:
        name: its name in the result.
        parts: one list per stage that holds it: each tensor-parallel rank's part, with its file.
        division: how the parts lie in the weight; None: every rank holds it whole.
        shape: of the result.
    """

    name: str
    parts: list[list[tuple[str, NewTensor]]]
    division: Division | None
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.parts[0][0][1].dtype

    def make(self) -> np.ndarray:
        """Read and join the parts; what goes beyond ``shape`` is padding."""
        if self.division is None:
            whole = self.parts[0][0][1].make()
        else:
            whole = self.division.merge([part.make for _, part in self.parts[0]])
        return whole[tuple(slice(size) for size in self.shape)]


@dataclass
class ShardPlan:
    """A checked checkpoint, ready to be written.

    Attributes:
        pieces: the weights in the order of the model.
        computed: buffers that no shard holds, by name.
        notices: what the user should know.
    """

    pieces: list[Piece]
    computed: dict[str, np.ndarray] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def without_degrees(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config whose keys about the run's distribution say: a single process."""
    return dict(config) | {key: value for key, value in ONE_PROCESS.items() if key in config}


def plan_merge(shards: ShardFiles, config: Mapping[str, Any], own: Mapping[str, Any], force: bool) -> ShardPlan:
    """Check a sharded checkpoint and say what each weight is made of.

    Args:
        shards: its files.
        config: the model's config.json; the base's for an adapter.
        own: content of lora_config.json or prefix_config.json; the same as ``config`` for a model.
        force: take the first rank's values where weights that all ranks should share differ.

    Raises:
        CheckpointError: everything that is wrong, at once.
    """
    if shards.is_sharded:
        check_degree(shards, own)
    problems = _steps(shards.path)
    stages = _stages(shards, problems)
    _raise(shards.path, problems)
    plan = ShardPlan([])
    if shards.kind == "prefix":
        shapes = {name: part[0][1].shape for name, part in stages[0].items()}
        divisions = prefix_divisions(own, shapes, shards.degree)
        for name, part in stages[0].items():
            division, shape = divisions.get(name), part[0][1].shape
            whole = division.whole_shape(shape, shards.degree) if division else shape
            plan.pieces.append(Piece(name, [part], division, whole))
    else:
        family = family_of(config, where=str(shards.path / "config.json"))
        skeleton = skeleton_of(without_degrees(config))
        place = _place_adapter if shards.kind == "lora" else _place_model
        place(plan, stages, config, family, skeleton, shards.degree, problems)
    _raise(shards.path, problems)
    _compare_copies(plan, problems, force)
    _raise(shards.path, problems, "--force takes the first rank's values.")
    return plan


def check_degree(shards: ShardFiles, own: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with fewer or more tensor-parallel ranks than its config says."""
    said = own.get("tensor_parallel_degree") or 1
    if 1 < said != shards.degree:
        name = {"lora": "lora_config.json", "prefix": "prefix_config.json"}.get(shards.kind, "config.json")
        missing = [f"tp{rank:02d}" for rank in range(shards.degree, said)]
        lacking = f" Missing: {', '.join(missing)}." if missing else ""
        raise CheckpointError(
            f"{shards.path / name} says tensor_parallel_degree {said}, but there are files of {shards.degree} "
            f"tensor-parallel ranks.{lacking} Copy all ranks' files of one run into one directory."
        )


def _steps(path: Path) -> list[str]:
    """Compare what the files beside the weights say about the step they were written at."""
    found: dict[str, int] = {}
    for file in sorted(path.glob("optimizer*.pdopt")):
        content = walk_pickle(file)
        step = (content.get("LR_Scheduler") or {}).get("last_epoch") if isinstance(content, dict) else None
        if step is not None:
            found[file.name] = int(step)
    problems = []
    if len(set(found.values())) > 1:
        words = ", ".join(f"{name} step {step}" for name, step in list(found.items())[:SHOWN])
        problems.append(f"files of different steps are mixed: {words}")
    state = path / "trainer_state.json"
    number = path.name.removeprefix("checkpoint-")
    if state.is_file() and path.name != number and number.isdigit():
        step = json.loads(state.read_text(encoding="utf-8")).get("global_step")
        if step is not None and step != int(number):
            problems.append(f"files of different steps are mixed: trainer_state.json is of step {step}")
    return problems


Part = list[tuple[str, NewTensor]]  # one weight in all tensor-parallel ranks of a stage: (file, part)


def _stages(shards: ShardFiles, problems: list[str]) -> list[dict[str, Part]]:
    """List each stage's weights with the parts of all ranks, which must have the same names, shapes and types."""
    stages = []
    for stage in range(shards.stages):
        ranks = []
        for tensor in range(shards.degree):
            held = {}
            for share in range(shards.shares):
                rank = Rank(stage, tensor, share)
                held |= {name: (shards.name(rank), value) for name, value in shards.tensors(rank).items()}
            ranks.append(held)
        for held in ranks[1:]:
            for name in sorted(set(ranks[0]) ^ set(held)):
                has, lacks = (ranks[0], held) if name in ranks[0] else (held, ranks[0])
                file = next(iter(lacks.values()))[0] if lacks else "an empty file"
                problems.append(f"{file} lacks {name}, which {has[name][0]} holds")
        common = [name for name in ranks[0] if all(name in held for held in ranks)]
        for name in common:
            first_file, first = ranks[0][name]
            for file, value in (held[name] for held in ranks[1:]):
                for what, here, there in (("shape", first.shape, value.shape), ("type", first.dtype, value.dtype)):
                    if here != there:
                        problems.append(f"{name} has {what} {_text(here)} in {first_file}, {_text(there)} in {file}")
        stages.append({name: [held[name] for held in ranks] for name in common})
    return stages


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _gather(
    stages: Sequence[Mapping[str, Part]], family: Family, skeleton: Skeleton
) -> tuple[dict[str, list[Part]], dict[str, str]]:
    """Collect each weight's parts from all stages, under the model's name for it, once for weights with two names.

    Returns:
        The parts, and for each the name that decides how it is divided.
    """
    gathered: dict[str, list[Part]] = {}
    stored: dict[str, str] = {}
    for stage in stages:
        for name in stage:
            full = full_name(name, family, skeleton)
            first = skeleton.second_names.get(full, full)
            gathered.setdefault(first, [])
            # the weight's own name first: PaddleNLP has no rule for some second names
            gathered[first].insert(0 if full == first else len(gathered[first]), stage[name])
            if first not in stored or full == first:
                stored[first] = full
    return gathered, stored


def _place_model(
    plan: ShardPlan, stages: Sequence[Mapping[str, Part]], config: Mapping[str, Any], family: Family,
    skeleton: Skeleton, degree: int, problems: list[str],
) -> None:  # fmt: skip
    gathered, stored = _gather(stages, family, skeleton)
    actions = tensor_parallel_actions(config, family, [*skeleton.shapes], degree) if degree > 1 else {}
    vocabulary = {config.get("vocab_size"), config.get("padded_vocab_size")} - {None}
    for name, parts in gathered.items():
        if name not in skeleton.shapes:
            problems.append(f"{parts[0][0][0]} holds {name}, which the model of config.json does not have")
            continue
        part, wanted = parts[0][0][1].shape, skeleton.shapes[name]
        action = actions.get(stored[name], actions.get(name))
        division = division_of(action, part, degree) if action and part != wanted else None
        whole = division.whole_shape(part, degree) if division else part
        if whole != wanted and not _is_second_copy(name, parts, gathered):
            cut = [axis for axis, (has, asked) in enumerate(zip(whole, wanted)) if has != asked]
            if len(whole) == len(wanted) and len(cut) == 1 and whole[cut[0]] > wanted[cut[0]] in vocabulary:
                extra = whole[cut[0]] - wanted[cut[0]]
                plan.notices.append(
                    f"{name} has {extra} entries more than the vocabulary of {wanted[cut[0]]}; they are padding and "
                    "were cut off."
                )
            else:
                says = "joined from" if division else "whole in each of"
                problems.append(
                    f"{name} is {list(whole)}, {says} {len(parts[0])} ranks with {list(part)} "
                    f"({parts[0][0][0]}); config.json makes it {list(wanted)}"
                )
        elif whole != wanted:
            continue  # the embedding under another name
        plan.pieces.append(Piece(name, parts, division, wanted))
    missing = [name for name in skeleton.shapes if name not in gathered and name not in skeleton.second_names]
    plan.computed = {name: skeleton.buffers[name] for name in missing if name in skeleton.buffers}
    lacking = [
        name for name in missing
        if name not in plan.computed and not (family.tie_head and not name.startswith(family.base_prefix))
    ]  # fmt: skip
    if lacking:
        problems.append(
            f"{len(lacking)} of {len(skeleton.shapes)} weights are in no file: {', '.join(lacking[:3])}"
            f"{', ...' if len(lacking) > 3 else ''}. Is a pipeline stage missing?"
        )
    order = {name: i for i, name in enumerate(skeleton.shapes)}
    plan.pieces.sort(key=lambda piece: order[piece.name])


def _is_second_copy(name: str, parts: Sequence[Part], gathered: Mapping[str, Sequence[Part]]) -> bool:
    """Tell whether a weight without a rule is the embedding again: the same numbers in every rank."""
    for other, theirs in gathered.items():
        if other == name or "embed" not in other or theirs[0][0][1].shape != parts[0][0][1].shape:
            continue
        if all(same_bits(a.make(), b.make()) for (_, a), (_, b) in zip(parts[0], theirs[0])):
            return True
    return False


def _place_adapter(
    plan: ShardPlan, stages: Sequence[Mapping[str, Part]], config: Mapping[str, Any], family: Family,
    skeleton: Skeleton, degree: int, problems: list[str],
) -> None:  # fmt: skip
    gathered, _ = _gather(stages, family, skeleton)
    actions = tensor_parallel_actions(config, family, [*skeleton.shapes], degree) if degree > 1 else {}
    for name, parts in gathered.items():
        layer, _, kind = name.rpartition(".")
        weight = full_name(f"{layer}.weight", family, skeleton) if kind in LOW_RANK else name
        if weight not in skeleton.shapes:
            problems.append(f"{parts[0][0][0]} holds {name}, but the model of config.json has no {weight}")
            continue
        whole_weight, part = skeleton.shapes[weight], parts[0][0][1].shape
        division = None
        if weight in actions:
            division = adapter_division(actions[weight], kind, whole_weight, degree)
        whole = division.whole_shape(part, degree) if division else part
        wanted = {"lora_A": (whole_weight[0], part[-1]), "lora_B": (part[0], whole_weight[-1])}.get(kind, whole_weight)
        if whole != wanted:
            problems.append(
                f"{name} is {list(whole)}, from {len(parts[0])} ranks with {list(part)} ({parts[0][0][0]}); "
                f"the model makes it {list(wanted)}"
            )
            continue
        full = full_name(f"{layer}.weight", family, skeleton)[: -len("weight")] + kind if kind in LOW_RANK else name
        plan.pieces.append(Piece(full, parts, division, wanted))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Compare two arrays bit for bit, as a NaN is equal to no number."""
    if a.shape != b.shape:
        return False
    return bool(np.array_equal(as_bits(a), as_bits(b)))


def _compare_copies(plan: ShardPlan, problems: list[str], force: bool) -> None:
    """Compare weights that several ranks or stages hold whole, bit for bit."""
    differing = []
    for piece in plan.pieces:
        copies = []
        if piece.division is None:
            copies += [(piece.parts[0][0], other) for part in piece.parts for other in part]
        else:
            copies += [pair for part in piece.parts[1:] for pair in zip(piece.parts[0], part)]
        for (file, value), (other_file, other) in copies:
            if value is other:
                continue
            a, b = value.make(), other.make()
            if not same_bits(a, b):
                apart = np.abs(a.astype(np.float64) - b.astype(np.float64)).max() if a.shape == b.shape else np.nan
                differing.append(f"{piece.name} differs by up to {apart:.2e} between {file} and {other_file}")
    if differing and force:
        plan.notices.append(f"Forced: the first rank's values were taken. {'; '.join(differing[:SHOWN])}.")
    elif differing:
        problems += [f"{text}, which should hold the same" for text in differing]


def _raise(path: Path, problems: list[str], hint: str = "") -> None:
    if problems:
        shown = "".join(f"\n  - {problem}" for problem in problems[:SHOWN])
        more = f"\n  - and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(
            f"{path} cannot be merged; nothing was written:{shown}{more}\n"
            f"Copy the files of one step of one run into one directory. {hint}".rstrip()
        )
