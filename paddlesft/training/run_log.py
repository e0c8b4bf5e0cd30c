"""``train_log.jsonl``: one JSON object for every log line and evaluation of a run, in full precision."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "train_log.jsonl"


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read a log. A last line that was cut off by a crash is left out.

    Args:
        path: the file, or the output directory that holds it.

    Returns:
        Its records; empty when there is no file.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class RunLog:
    """Appends to the log of a run.

    Args:
        output_dir: the run's directory.
        from_step: the step the run starts from; records of later steps come from an attempt that was cut off before its
            next checkpoint and are removed, so that the log reads like that of an uninterrupted run.
    """

    def __init__(self, output_dir: str | Path, from_step: int = 0) -> None:
        self.path = Path(output_dir) / FILE
        kept = [r for r in read_log(self.path) if r.get("step", 0) <= from_step] if from_step else []
        beside = self.path.with_suffix(".jsonl.part")
        beside.write_text("".join(_line(r) for r in kept), encoding="utf-8")
        os.replace(beside, self.path)

    def append(self, kind: str, record: Mapping[str, Any]) -> None:
        """Add a record.

        Args:
            kind: ``"train"`` or ``"eval"``.
            record: JSON values; floats are written so that they read back unchanged.
        """
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line({"kind": kind, **record, "time": round(time.time(), 3)}))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
