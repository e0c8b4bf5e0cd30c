"""Run as a process of its own: train a small model as often as asked, dying now and then while saving a checkpoint.

Reads lines of JSON, [OUTPUT_DIR, KILL_AT_STEP or "never", WHERE, [key=value, ...]], and answers each with the line
[exit code, what was printed]; a signal's number is negative. Every run is a process of its own, forked from this one,
which has imported paddle. WHERE is where such a process kills itself with SIGKILL: ``weights`` (only the weights are
written), ``marker`` (everything is written, the marker is not), ``rename`` (the marker is written, the final name is
not given yet).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import paddlesft  # noqa: F401  (prepares the environment)
from paddlesft.training import checkpoint_saving, checkpoint_writing
from paddlesft.training.resume import find_checkpoint
from tests.training.small_runs import small_run


def die() -> None:
    """End this process as a power failure would."""
    os.kill(os.getpid(), signal.SIGKILL)


def train(output_dir: str, kill_at: str, where: str, overrides: list[str]) -> None:
    """Resume from the newest complete checkpoint if there is one, and train."""
    doomed = f"checkpoint-{kill_at}.incomplete"
    seal, save_state = checkpoint_saving.seal, checkpoint_writing.save_training_state

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

    checkpoint_saving.seal, checkpoint_writing.save_training_state = dying_seal, dying_state
    resume, passed_over = find_checkpoint(output_dir, None, overwrite=False)
    print("resume", resume.name if resume else None, [path.name for path, _ in passed_over])
    small_run(Path(output_dir), *overrides, resume=resume)


def in_a_process(*run: object) -> tuple[int, str]:
    """Train in a child of this process; return its exit code and what it printed."""
    with tempfile.TemporaryFile("w+") as printed:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                train(*run)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        printed.seek(0)
        return os.waitstatus_to_exitcode(status), printed.read()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(in_a_process(*json.loads(line))), flush=True)
