"""Run as a process of its own: train a small model and, when asked, die while a checkpoint is being written.

usage: interrupted_run.py OUTPUT_DIR KILL_AT_STEP|never WHERE [key=value ...]

WHERE is where the process kills itself with SIGKILL: ``weights`` (only the weights are written), ``marker`` (everything
is written, the marker is not), ``rename`` (the marker is written, the final name is not given yet).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import paddlesft  # noqa: F401  (prepares the environment)
from paddlesft.training import checkpoint_saving, trainer
from paddlesft.training.resume import find_checkpoint
from tests.training.small_runs import small_run


def die() -> None:
    """End this process as a power failure would."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(output_dir: str, kill_at: str, where: str, *overrides: str) -> None:
    """Resume from the newest complete checkpoint if there is one, and train."""
    doomed = f"checkpoint-{kill_at}.incomplete"
    seal, save_state = checkpoint_saving.seal, trainer.save_training_state

    def dying_state(directory: Path, *rest: object) -> None:
        if where == "weights" and doomed in directory.name:
            die()
        save_state(directory, *rest)

    def dying_seal(directory: Path, step: int) -> None:
        if where == "marker" and doomed in directory.name:
            die()
        seal(directory, step)
        if where == "rename" and doomed in directory.name:
            die()

    checkpoint_saving.seal, trainer.save_training_state = dying_seal, dying_state
    resume, passed_over = find_checkpoint(output_dir, None, overwrite=False)
    print("resume", resume.name if resume else None, [path.name for path, _ in passed_over])
    small_run(Path(output_dir), *overrides, resume=resume)


if __name__ == "__main__":
    main(*sys.argv[1:])
