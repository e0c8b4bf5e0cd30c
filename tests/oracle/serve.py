"""Run the scripts beside this one for the tests: importing torch takes longer than most of them.

Run in the torch environment. Reads {"script": name, "arguments": [...]} from a line, runs the script in a process
forked from this one, and writes {"output": what it printed} or {"error": traceback} on a line; until the input ends.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import peft  # noqa: F401  (for the scripts)
import torch  # noqa: F401
from transformers import AutoModelForCausalLM  # noqa: F401

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print by themselves does not come between the answers


def run(script: str, arguments: list[str]) -> dict[str, str]:
    """Run a script as a program would be run."""
    path = Path(__file__).with_name(script)
    sys.argv = [str(path), *arguments]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(path), run_name="__main__")
    except BaseException:
        return {"error": traceback.format_exc()}
    return {"output": printed.getvalue()}


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        error = f"the process ended with {os.waitstatus_to_exitcode(status)}"
        print(json.dumps({"error": error}), file=answers, flush=True)
