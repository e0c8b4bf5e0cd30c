"""One checkpoint of a run whose ranks all take part in it: written beside, sealed by the first rank, then renamed.

A unified checkpoint holds whole weights and a whole optimizer state, gathered and written by the first rank; any layout
goes on from it. Otherwise each rank writes its own part into the same directory and nothing is gathered; only the
layout that wrote it goes on from it.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import paddle.distributed as dist

from paddlesft.errors import CheckpointError
from paddlesft.parallel.division import Division
from paddlesft.parallel.place import is_first_copy
from paddlesft.training.checkpoint_saving import new_checkpoint, scratch_directory
from paddlesft.training.rank_weights import weights_file
from paddlesft.training.ranks import is_first_rank, wait_for_all, world_size
from paddlesft.training.training_state import DIRECTORY, own_optimizer_file, save_training_state

TRAINER_STATE = "trainer_state.json"


def write_checkpoint(trainer: Any, output_dir: Path, step: int) -> None:
    """Write ``checkpoint-{step}``; all ranks call it.

    A rank that fails leaves the others waiting for it until they are ended, and the checkpoint without a name.

    Args:
        trainer: the ``SFTTrainer``.
        output_dir: the run's directory.
        step: optimizer steps done.

    Raises:
        CheckpointError: ranks have written where the first one does not see it.
    """
    unified = trainer.unified_checkpoint or world_size() == 1
    with new_checkpoint(output_dir, step) if is_first_rank() else nullcontext() as scratch:
        if not unified:
            wait_for_all()  # the directory is there now
            scratch = scratch_directory(output_dir, step)
            scratch.mkdir(parents=True, exist_ok=True)  # on another node
        trainer.write_weights(scratch, unified)
        save_training_state(scratch, trainer, unified)
        if is_first_rank():
            trainer.state.save_to_json(str(scratch / TRAINER_STATE))
            if trainer.write_identity is not None:
                trainer.write_identity(scratch)
        if not unified:
            _find_all(scratch, _own_files(trainer))
    if trainer.keep_best and world_size() > 1:
        _let_all_see(output_dir / f"checkpoint-{step}")


def _own_files(trainer: Any) -> list[str]:
    """Return what this rank has written besides the first rank's files."""
    files = []
    if Division(trainer.model).has_parts and is_first_copy("data", "sharding"):
        files.append(weights_file(trainer.model))
    if is_first_copy("data") and not trainer.args.ignore_save_lr_and_optim:
        files.append(f"{DIRECTORY}/{own_optimizer_file()}")
    return files


def _let_all_see(checkpoint: Path) -> None:
    """Make sure at the first checkpoint, not at the end, that every rank can read the best one."""
    wait_for_all()
    seen: list[Any] = []
    dist.all_gather_object(seen, checkpoint.is_dir())
    blind = [str(rank) for rank, sees in enumerate(seen) if not sees]
    if blind:
        raise CheckpointError(
            f"load_best_model_at_end: true, but rank {', '.join(blind)} cannot see {checkpoint}, which the first rank "
            "has written. Let output_dir be on storage that all nodes share, or set load_best_model_at_end: false."
        )


def _find_all(scratch: Path, own: list[str]) -> None:
    """Look for the files of all ranks from the first one."""
    written: list[Any] = []
    dist.all_gather_object(written, own)
    if not is_first_rank():
        return
    missing = [(rank, file) for rank, files in enumerate(written) for file in files if not (scratch / file).is_file()]
    if missing:
        shown = ", ".join(f"{file} (rank {rank})" for rank, file in missing[:4])
        raise CheckpointError(
            f"output_dir: {scratch.parent} is not the same directory on all nodes: {len(missing)} files that other "
            f"ranks have written are not there: {shown}{', ...' if len(missing) > 4 else ''}. The checkpoint is not "
            "complete. Let output_dir be on storage that all nodes share, or set unified_checkpoint: true, with which "
            "the first rank writes everything."
        )
