"""A file of JSON lines that grows while a run goes on, and a record of the run's settings beside it.

A run that ends early leaves complete lines and at most one half line. The next run with the same settings removes the
half line and goes on; a run with other settings is refused, because lines of both would stand in one file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from paddlesft.directories import write_json
from paddlesft.errors import FileProblem, UserError


class Answerable(Protocol):
    """What a line belongs to."""

    @property
    def src(self) -> Any: ...

    @property
    def tgt(self) -> str: ...


def digest(value: Any) -> str:
    """Return ``sha256:...`` of a JSON value."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


class OutputFile:
    """An output file that is begun or continued.

    Args:
        path: the file.
        settings: JSON values that decide every line. Recorded beside the file, compared when it is continued.
        overwrite: begin anew whatever is there.
        random_keys: settings that get a random number when they are None; a continued run takes the recorded number.

    Attributes:
        settings: the settings in force, random numbers filled in.
        repaired: whether half a line was removed.

    Raises:
        UserError: the file exists without its record, or its record differs.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], overwrite: bool = False, random_keys: Sequence[str] = ()
    ) -> None:
        self.path = Path(path)
        self.record = self.path.with_name(self.path.name + ".settings.json")
        self.settings = json.loads(json.dumps(dict(settings)))
        self.repaired = False
        if self.path.is_dir():
            raise UserError(f"output_file: {self.path} is a directory. Give the name of a file.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileProblem(error, f"Cannot create the directory of output_file {self.path}, at") from error
        if overwrite:
            self.path.unlink(missing_ok=True)
            self.record.unlink(missing_ok=True)
        if self.path.is_file() and self.path.stat().st_size:
            self._continue(random_keys)
        else:
            self._begin(random_keys)
        self._stream = None

    def __enter__(self) -> OutputFile:
        self._stream = open(self.path, "ab")
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines; they are on their way to the disk when this returns."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self._stream.write(text.encode("utf-8", "replace"))
        self._stream.flush()

    def check_lines(self, rows: Sequence[Answerable]) -> int:
        """Compare the complete lines with the first rows of the input.

        Returns:
            How many there are.

        Raises:
            UserError: a line is damaged or belongs to another row.
        """
        number = 0
        with open(self.path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    value = json.loads(line)
                    found = (value["src"], value["tgt"], type(value["output"]))
                except (ValueError, KeyError, TypeError):
                    self._refuse(f"line {number} is not a line of replies (src, tgt, output)")
                if number > len(rows):
                    self._refuse(f"it has more lines than the input has rows ({len(rows)})")
                row = rows[number - 1]
                if found != (row.src, row.tgt, str):
                    self._refuse(f"line {number} answers {found[0]!r}, row {number} of the input is {row.src!r}")
        return number

    def _begin(self, random_keys: Sequence[str]) -> None:
        for key in random_keys:
            if key in self.settings and self.settings[key] is None:
                self.settings[key] = secrets.randbelow(2**31)
        self.path.touch()
        write_json(self.record, self.settings)

    def _continue(self, random_keys: Sequence[str]) -> None:
        try:
            recorded = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._refuse(f"it exists, but not the record of what made it ({self.record.name})")
        except ValueError:
            self._refuse(f"{self.record.name} beside it is not JSON")
        for key in random_keys:
            if self.settings.get(key, 0) is None:
                self.settings[key] = recorded.get(key)
        keys = list(dict.fromkeys([*recorded, *self.settings]))
        differing = [key for key in keys if recorded.get(key) != self.settings.get(key)]
        if differing:
            lines = [f"  {key}: then {recorded.get(key)!r}, now {self.settings.get(key)!r}" for key in differing]
            self._refuse("its lines were made by a run with other settings\n" + "\n".join(lines) + "\n")
        self._repair()

    def _repair(self) -> None:
        with open(self.path, "rb+") as stream:
            size = stream.seek(0, os.SEEK_END)
            end = size
            while end:
                begin = max(0, end - 65536)
                stream.seek(begin)
                newline = stream.read(end - begin).rfind(b"\n")
                if newline >= 0:
                    end = begin + newline + 1
                    break
                end = begin
            if end < size:
                stream.truncate(end)
                self.repaired = True

    def _refuse(self, reason: str) -> None:
        reason = reason if reason.endswith("\n") else reason + ". "
        raise UserError(
            f"Cannot continue {self.path}: {reason}"
            "Nothing was changed. Choose another output_file, or add --overwrite to start it anew."
        )
