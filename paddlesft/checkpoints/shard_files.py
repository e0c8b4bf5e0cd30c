"""Which weight files of a checkpoint belong to which rank: the names that PaddleNLP and PaddleFormers give them.

``model_state.tp00_pp01.pdparams`` is the part of tensor-parallel rank 0 in pipeline stage 1; ``lora_model_state`` and
``prefix_model_state`` are the same for adapters. ``shard00`` is a part of the weights by name (sharding stage 1 that
saves each rank's own). ``model-00001-of-00002.safetensors`` without a rank holds whole weights (unified checkpoint).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from paddlesft.errors import CheckpointError
from paddlesft.models.stored import read_pdparams
from paddlesft.models.weights import NewTensor, read_header

KINDS = {
    "model_state": "model", "model": "model",
    "lora_model_state": "lora", "prefix_model_state": "prefix", "peft_model": "adapter",
}  # fmt: skip
NAME = re.compile(
    r"(?P<stem>model_state|model|lora_model_state|prefix_model_state|peft_model)"
    r"(?:\.(?P<ranks>(?:tp|pp|shard|moe|sep|cp)\d+(?:_(?:tp|pp|shard|moe|sep|cp)\d+)*))?"
    r"(?:-(?P<part>\d+)-of-(?P<parts>\d+))?\.(?P<ending>pdparams|safetensors)"
)
RANK = re.compile(r"([a-z]+)(\d+)")
CONFIG_OF = {"lora": "lora_config.json", "prefix": "prefix_config.json"}


@dataclass(frozen=True, order=True)
class Rank:
    """Place of a shard: its pipeline stage, tensor-parallel rank and share by names."""

    stage: int = 0
    tensor: int = 0
    share: int = 0


@dataclass
class ShardFiles:
    """The weight files of a checkpoint.

    Attributes:
        path: its directory.
        kind: "model", "lora" or "prefix".
        files: each rank's files.
        stages: pipeline stages, 1 without pipeline parallelism.
        degree: tensor-parallel ranks, 1 without tensor parallelism.
        shares: parts by name, 1 without.
    """

    path: Path
    kind: str
    files: dict[Rank, list[Path]] = field(default_factory=dict)

    @property
    def stages(self) -> int:
        return max(rank.stage for rank in self.files) + 1

    @property
    def degree(self) -> int:
        return max(rank.tensor for rank in self.files) + 1

    @property
    def shares(self) -> int:
        return max(rank.share for rank in self.files) + 1

    @property
    def is_sharded(self) -> bool:
        """Whether any file is one rank's part; otherwise they hold whole weights."""
        return self.stages * self.degree * self.shares > 1 or any(
            NAME.fullmatch(file.name)["ranks"] for files in self.files.values() for file in files
        )

    def layout(self) -> str:
        """Say it in words: ``tensor parallel 2, pipeline stages 2``."""
        words = [f"tensor parallel {self.degree}"] if self.degree > 1 else []
        words += [f"pipeline stages {self.stages}"] if self.stages > 1 else []
        words += [f"sharding {self.shares}"] if self.shares > 1 else []
        return ", ".join(words) or "one rank"

    def tensors(self, rank: Rank) -> dict[str, NewTensor]:
        """List a rank's weights; each array is read when it is asked for."""
        found: dict[str, NewTensor] = {}
        for file in self.files[rank]:
            if file.name.endswith(".pdparams"):
                found |= read_pdparams(file)
            else:
                header, _ = read_header(file)
                found |= {name: NewTensor(t.dtype, t.shape, t.load) for name, t in header.items()}
        return found

    def name(self, rank: Rank) -> str:
        """Name a rank's file in messages."""
        return self.files[rank][0].name


def find_shards(path: str | Path) -> ShardFiles:
    """Find the weight files of a checkpoint and which rank each is of.

    Args:
        path: a checkpoint's directory.

    Raises:
        CheckpointError: it is none, has parts of kinds that cannot be merged, or parts are missing; all are named.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"model_name_or_path: {path} is not a directory. Give the directory of a checkpoint.")
    named = {file: match for file in sorted(path.iterdir()) if (match := NAME.fullmatch(file.name))}
    _refuse_others(path, named)
    kinds = {KINDS[match["stem"]] for match in named.values()} - {"adapter"}
    if {"lora", "prefix"} & kinds:  # an adapter's directory may hold the base's config, never its weights
        kinds -= {"model"}
    if any(match["stem"] == "peft_model" for match in named.values()) and not kinds:
        kinds = {"lora" if (path / CONFIG_OF["lora"]).is_file() else "prefix"}
    if len(kinds) > 1:
        raise CheckpointError(f"{path} holds parts of several kinds ({', '.join(sorted(kinds))}). Put each in its own.")
    kind = kinds.pop()
    shards, counts = ShardFiles(path, kind), {}
    chosen = {f: m for f, m in named.items() if KINDS[m["stem"]] in (kind, "adapter")}
    if any(match["ranks"] for match in chosen.values()):  # parts beside a whole model: the parts are what was asked for
        chosen = {f: m for f, m in chosen.items() if m["ranks"]}
    endings = {match["ending"] for match in chosen.values()}
    if len(endings) > 1:
        chosen = {f: m for f, m in chosen.items() if m["ending"] == "safetensors"}
    for file, match in chosen.items():
        place = {letters: int(number) for letters, number in RANK.findall(match["ranks"] or "")}
        rank = Rank(place.get("pp", 0), place.get("tp", 0), place.get("shard", 0))
        shards.files.setdefault(rank, []).append(file)
        if match["parts"]:
            counts.setdefault(rank, (set(), int(match["parts"]), match))[0].add(int(match["part"]))
    _refuse_missing(shards, counts)
    return shards


def _refuse_others(path: Path, named: dict[Path, re.Match[str]]) -> None:
    if not named:
        runs = sorted(file.name for file in path.glob("checkpoint-*") if file.is_dir())
        found = ", ".join(sorted(file.name for file in path.iterdir())[:6]) or "nothing"
        if runs:
            newest = max(runs, key=lambda name: int(re.sub(r"\D", "", name) or 0))
            raise CheckpointError(
                f"{path} is a run's directory; its checkpoints are {', '.join(runs[:6])}. Give one: {path / newest}."
            )
        if any(path.glob("*.distcp")):
            raise CheckpointError(
                f"{path} is a checkpoint of Paddle's automatic parallelism (*.distcp), which is not read here. "
                "Save it from the run with unified_checkpoint: true."
            )
        raise CheckpointError(
            f"{path} holds no weights: expected model_state.tp00.pdparams, model_state.tp00_pp00.pdparams, "
            f"lora_model_state.tp00.pdparams or the like. Found: {found}."
        )
    for kind, meaning in (("moe", "expert parallelism"), ("sep", "segment parallelism"), ("cp", "context parallelism")):
        parts = [file.name for file, match in named.items() if re.search(rf"(^|_){kind}\d", match["ranks"] or "")]
        if parts:
            raise CheckpointError(f"{path} holds parts of {meaning} ({parts[0]}), which cannot be merged here.")


def _refuse_missing(shards: ShardFiles, counts: dict[Rank, tuple[set[int], int, re.Match[str]]]) -> None:
    wanted = [
        Rank(stage, tensor, share)
        for stage in range(shards.stages) for tensor in range(shards.degree) for share in range(shards.shares)
    ]  # fmt: skip
    missing = [_file_name(shards, rank) for rank in wanted if rank not in shards.files]
    for _, (found, total, match) in sorted(counts.items()):
        stem = f"{match['stem']}{'.' + match['ranks'] if match['ranks'] else ''}"
        width = len(match["part"])
        missing += [
            f"{stem}-{i:0{width}d}-of-{total:0{width}d}.{match['ending']}"
            for i in range(1, total + 1)
            if i not in found
        ]
    if missing:
        there = sorted(file.name for files in shards.files.values() for file in files)
        raise CheckpointError(
            f"{shards.path} is incomplete: {len(missing)} of {len(missing) + len(there)} files are missing: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}. Found: {', '.join(there[:4])}"
            f"{', ...' if len(there) > 4 else ''} ({shards.layout()}). Copy them from the node that wrote them."
        )


def _file_name(shards: ShardFiles, rank: Rank) -> str:
    """Name the file that a missing rank would have, after one that is there."""
    match = NAME.fullmatch(next(iter(shards.files.values()))[0].name)
    value = {"tp": rank.tensor, "pp": rank.stage, "shard": rank.share}
    ranks = RANK.sub(lambda found: f"{found[1]}{value[found[1]]:0{len(found[2])}d}", match["ranks"] or "")
    return f"{match['stem']}.{ranks}.{match['ending']}"
