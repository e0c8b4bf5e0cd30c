"""Start a program as several ranks on this machine and show all their errors, the one that began it first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"
ENDED_BY_ANOTHER = "MissingRank"  # the error of a rank that only noticed that another one had failed
TAIL = 3000  # characters of each rank's log


@dataclass
class Finished:
    """What is left of a launch.

    Attributes:
        code: exit code of the launcher.
        logs: what each rank wrote.
        directory: where the launcher's logs are.
    """

    code: int
    logs: list[str]
    directory: Path

    def report(self) -> str:
        """Return the end of every rank's log, the rank that failed first on top."""
        order = sorted(range(len(self.logs)), key=lambda rank: (_blame(self.logs[rank]), rank))
        return "\n".join(f"---- rank {rank} ----\n{self.logs[rank][-TAIL:]}" for rank in order)


def _blame(log: str) -> int:
    """0 for a log that ends in an error of its own, 1 for one that another rank ended, 2 without an error."""
    if "Traceback (most recent call last)" not in log:
        return 2
    return int(ENDED_BY_ANOTHER in log.rstrip().splitlines()[-1])


def launch(
    number: int, program: str | Path, *args: object, logs: Path, seconds: float = 300, **environ: str
) -> Finished:
    """Run a program under ``paddle.distributed.launch`` on this machine.

    Args:
        number: of ranks.
        program: a file of ``programs``, or a path.
        args: its arguments.
        logs: a new directory for the ranks' logs.
        seconds: how long it may take; then all its processes are ended.
        environ: more environment variables.

    Returns:
        The finished run, whether it went well or not.

    Raises:
        TimeoutError: it took too long; with all logs.
    """
    path = PROGRAMS / program
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", number, "--log_dir", logs]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", **environ}
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # empty, it stops the launcher with an IndexError
    process = subprocess.Popen(
        [str(part) for part in (*command, path, *args)],
        env=environment,
        cwd=REPO,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # the launcher ends its ranks
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        finished = Finished(-1, _logs(logs, number), logs)
        raise TimeoutError(f"{path.name} did not end in {seconds:g} s\n{finished.report()}") from None
    return Finished(code, _logs(logs, number), logs)


def launch_well(number: int, program: str | Path, *args: object, logs: Path, **options: object) -> Finished:
    """As ``launch``, but a run that fails is an AssertionError with every rank's log."""
    finished = launch(number, program, *args, logs=logs, **options)
    assert finished.code == 0, f"{program} failed with code {finished.code}\n{finished.report()}"
    return finished


def _logs(directory: Path, number: int) -> list[str]:
    files = [directory / f"workerlog.{rank}" for rank in range(number)]
    return [file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "(no log)" for file in files]
