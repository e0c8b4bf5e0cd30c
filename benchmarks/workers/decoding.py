"""What the workers of decode_speed.py have in common. Imports the standard library only, as pipe.py does."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipe import serve

Prompts = list[list[int]]


def read_setting(directory: str) -> dict[str, Any]:
    """Return what decode_speed.py wrote: prompts by number of rows, numbers of new tokens."""
    return json.loads((Path(directory) / "setting.json").read_text(encoding="utf-8"))


def held(most: bool = False) -> int:
    """Return the bytes that this process holds now, or the most since ``forget``; Linux."""
    field = "VmHWM:" if most else "VmRSS:"
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def serve_decoding(
    setting: dict[str, Any], versions: str, before: int, decode: Callable[[Prompts, int], dict[str, Any]]
) -> None:
    """Answer "1", "8" (a round of that many rows) and "warm 1", "warm 8" (a shorter one) until the input ends.

    Args:
        setting: see ``read_setting``.
        versions: of what computes.
        before: bytes held before the model was loaded.
        decode: generates as many tokens as told for each prompt; returns ``seconds`` until the first one, seconds of
            each further step as ``step``, and ``tokens``.
    """
    gc.collect()  # what loading took for a moment does not count
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def round_of(rows: str, new_tokens: int) -> dict[str, Any]:
        return {**decode(setting["prompts"][rows], new_tokens), "memory": held(most=True) - before}

    commands = {rows: lambda rows=rows: round_of(rows, setting["new_tokens"]) for rows in setting["prompts"]}
    commands |= {
        f"warm {rows}": lambda rows=rows: round_of(rows, setting["warm_tokens"]) for rows in setting["prompts"]
    }
    serve({"versions": versions}, commands)


def step_by_step(first: Callable[[], Any], step: Callable[[Any], Any], new_tokens: int) -> dict[str, Any]:
    """Time a loop that gives one token per row at a time.

    Args:
        first: runs the prompts; returns the first token of each row.
        step: runs one token of each row; returns the next.
        new_tokens: of each row.
    """
    begin = time.perf_counter()
    columns = [first()]
    middle = time.perf_counter()
    for _ in range(new_tokens - 1):
        columns.append(step(columns[-1]))
    end = time.perf_counter()
    tokens = [[int(token) for token in row] for row in zip(*columns)]
    return {"seconds": middle - begin, "step": (end - middle) / (new_tokens - 1), "tokens": tokens}


def whole_replies(generate: Callable[[int], list[list[int]]], new_tokens: int) -> dict[str, Any]:
    """Time a library's ``generate``: once for one token, once for all; the difference is that of the steps.

    Args:
        generate: returns as many new tokens of each row as told.
        new_tokens: of each row.
    """
    begin = time.perf_counter()
    generate(1)
    middle = time.perf_counter()
    tokens = generate(new_tokens)
    end = time.perf_counter()
    return {"seconds": middle - begin, "step": (end - 2 * middle + begin) / (new_tokens - 1), "tokens": tokens}
