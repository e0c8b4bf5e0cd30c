"""How a benchmark talks to its workers: one command per line in, one JSON object per line out.

This file imports the standard library only: the workers run in different environments.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Worker:
    """A process that answers commands.

    Args:
        python: the interpreter of its environment.
        script: the worker's file.
        arguments: given to the script.
        environ: added to the environment.
        log: file that receives what the worker prints besides its answers.
    """

    def __init__(
        self, python: str | Path, script: Path, arguments: list[str], environ: dict[str, str], log: Path
    ) -> None:
        self.name, self.log = script.stem, log
        self.process = subprocess.Popen(
            [str(python), str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w", encoding="utf-8"),
            env={**os.environ, **environ},
            text=True,
        )

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """Wait for one answer; the first one says that the worker is ready."""
        line = self.process.stdout.readline()
        if not line:
            text = self.log.read_text(encoding="utf-8", errors="replace")
            sys.exit(f"The worker {self.name} ended with code {self.process.wait()}:\n{text[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(timeout=60)


def serve(ready: dict[str, Any], commands: dict[str, Callable[[], dict[str, Any]]]) -> None:
    """Answer commands until the input ends. Whatever else the process prints goes to its error output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=answers, flush=True)


def timed(step: Callable[[], float]) -> dict[str, float]:
    """Run one training step; return its loss, its seconds, the processor seconds of all threads and the peak memory."""
    wall, processor = time.perf_counter(), time.process_time()
    loss = step()
    return {
        "loss": loss,
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
