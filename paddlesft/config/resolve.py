"""From a config file and the command line to the configuration of one run, with the origin of every value."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddlesft.config.data import DataConfig
from paddlesft.config.derived import derive_values
from paddlesft.config.fields import default_of
from paddlesft.config.generation import GenerationConfig
from paddlesft.config.loader import in_order_of_lines, raise_problems, read_arguments
from paddlesft.config.model import ModelConfig
from paddlesft.config.origins import Origin
from paddlesft.config.quantization import QuantizationConfig
from paddlesft.config.renamed import TRAINING_OLD_KEYS
from paddlesft.config.rules import find_idle_keys, find_problems
from paddlesft.config.training import TrainingConfig
from paddlesft.config.values import BadValue, check_range, check_type, describe_allowed, describe_found, field_types

RUN_GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "generation": GenerationConfig,
    "quantization": QuantizationConfig,
    "training": TrainingConfig,
}


@dataclasses.dataclass
class RunConfig:
    """The configuration of one run.

    Attributes:
        model, data, generation, quantization, training: the keys by theme.
        origins: where each key's value came from.
        notices: lines to show to the user before the run.
        path: the config file, if there was one.
    """

    model: ModelConfig
    data: DataConfig
    generation: GenerationConfig
    quantization: QuantizationConfig
    training: TrainingConfig
    origins: dict[str, Origin]
    notices: list[str]
    path: Path | None = None

    def flat(self) -> dict[str, Any]:
        """Return all keys and values."""
        return {f.name: getattr(group, f.name) for group in self._groups() for f in dataclasses.fields(group)}

    def derive(self, key: str, value: Any, why: str) -> None:
        """Set a key to a value computed from other values or from the machine, and keep the reason.

        Args:
            key: any key of any group.
            value: the value; it must fit the key.
            why: short reason, shown in the table of the resolved config.

        Raises:
            KeyError: there is no such key.
            ValueError: the value does not fit.
        """
        group, spec = self.find(key)
        tp = field_types(type(group))[key]
        try:
            value = check_type(value, tp)
            check_range(value, spec)
        except BadValue:
            raise ValueError(f"{key}: {describe_found(value)} derived; allowed: {describe_allowed(spec, tp)}") from None
        before, origin = getattr(group, key), self.origins[key]
        if origin.kind in ("file", "command line"):
            why = f"{why} (was {describe_found(before).rpartition(' (')[0]}, {origin.place})"
        setattr(group, key, value)
        self.origins[key] = Origin("derived", note=why)

    def was_set(self, key: str) -> bool:
        """Whether the user gave the key, in the file or on the command line."""
        return self.origins[key].kind in ("file", "command line")

    def table(self) -> list[tuple[str, str, str]]:
        """Return rows (key, value as text, origin), values other than the default first."""
        rows = [(key, self._shown(key, value), str(self.origins[key])) for key, value in self.flat().items()]
        return sorted(rows, key=lambda row: self.origins[row[0]].kind == "default")

    def save(self, path: str | Path) -> Path:
        """Write ``run_config.yaml``, which loads to the same configuration, and ``run_config.origins.json``.

        Args:
            path: directory; created when missing.

        Returns:
            The path of the YAML file. Each file appears complete or not at all.
        """
        directory = Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        lines = [
            "# The resolved configuration of this run. It can be used as a config file: paddlesft train run_config.yaml"
        ]
        for key, value, origin in self.table():
            comment = "" if origin == "default" else f"  # {' '.join(origin.split())}"
            lines.append(_escape_for_yaml(f"{key}: {value}{comment}"))
        target = directory / "run_config.yaml"
        _write(target, "\n".join(lines) + "\n")
        origins = {key: dataclasses.asdict(origin) for key, origin in self.origins.items()}
        _write(directory / "run_config.origins.json", json.dumps(origins, indent=1, ensure_ascii=False) + "\n")
        return target

    def _groups(self) -> list[Any]:
        return [getattr(self, name) for name in RUN_GROUPS]

    def find(self, key: str) -> tuple[Any, dataclasses.Field]:
        """Return the group that holds a key, and the key's declaration; KeyError when there is none."""
        for group in self._groups():
            for spec in dataclasses.fields(group):
                if spec.name == key:
                    return group, spec
        raise KeyError(key)

    def _shown(self, key: str, value: Any) -> str:
        _, spec = self.find(key)
        if spec.metadata.get("secret") and value != default_of(spec):
            return "null"
        return json.dumps(value, ensure_ascii=False)


def load_run_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Load, translate, check and resolve the configuration of a training run.

    Args:
        path: a flat JSON or YAML file, or None.
        overrides: arguments behind the verb: ``key=value``, ``--key value``, ``--key=value``, ``--flag``; the config
            file may be among them.

    Returns:
        The resolved configuration.

    Raises:
        ConfigError: everything that is wrong, in one text.
    """
    loaded = read_arguments(RUN_GROUPS, path, overrides, TRAINING_OLD_KEYS)
    run = RunConfig(**loaded.instances, origins=loaded.origins, notices=loaded.notices, path=loaded.path)
    derive_values(run)
    problems = list(loaded.problems)
    problems += [text for keys, text in find_problems(run) if not loaded.doubtful.intersection(keys)]
    run.notices = in_order_of_lines(run.notices + find_idle_keys(run))
    raise_problems(problems, loaded.path)
    return run


def _escape_for_yaml(line: str) -> str:
    """Escape characters that YAML refuses or takes for line breaks; JSON's own escapes are YAML's too."""
    return re.sub(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]",
                  lambda match: f"\\u{ord(match[0]):04x}", line)  # fmt: skip


def _write(path: Path, text: str) -> None:
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".incomplete", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
