"""Asks torch + transformers + PEFT, which live in an environment of their own, for the numbers to compare with."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
PYTHON = REPO / ".venv-oracle" / "bin" / "python"


class TorchOracle:
    """Runs scripts of ``tests/oracle/`` in processes forked from one that has imported torch.

    The torch stack wants another tokenizers version than paddlenlp, so it cannot be imported here. A missing oracle is
    a failure, not a skip: the comparison is part of what the tests promise.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115

    def __call__(self, script: str, *arguments: object, timeout: float = 900) -> dict[str, Any]:
        """Run a script and return the JSON object that it prints last.

        Args:
            script: its name in ``tests/oracle/``.
            arguments: its arguments.
            timeout: in seconds.
        """
        process = self._running()
        print(json.dumps({"script": script, "arguments": [str(a) for a in arguments]}), file=process.stdin, flush=True)
        answered, _, _ = select.select([process.stdout], [], [], timeout)
        line = process.stdout.readline() if answered else ""
        if not line:
            self.close()
            self._errors.seek(0)
            reason = "ended" if answered else f"did not answer within {timeout} s"
            raise AssertionError(f"{script}: the torch process {reason}.\n{self._errors.read()[-4000:]}")
        answer = json.loads(line)
        assert "error" not in answer, answer["error"][-4000:]
        return json.loads(answer["output"].strip().splitlines()[-1])

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)  # the script that runs, too
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            assert PYTHON.exists(), f"{PYTHON} is missing: run `make .venv-oracle/.installed`"
            self._process = subprocess.Popen(
                [str(PYTHON), str(REPO / "tests" / "oracle" / "serve.py")],
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                start_new_session=True,
            )
        return self._process
