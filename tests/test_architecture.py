"""The house plan holds: imports point down, files stay small, names say what a file is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "paddlesft"
LEVELS = {
    "errors": 0, "directories": 0, "quirks": 0, "runtime": 0, "known_versions": 0, "environment": 0,
    "config": 1,
    "data": 2, "models": 2,
    "tuning": 3, "parallel": 3,
    "inference": 4, "checkpoints": 4, "training": 4, "quantization": 4,
    "serving": 5,
    "cli": 6,
}  # fmt: skip
SAME_LEVEL = {
    ("training", "inference"),
    ("training", "checkpoints"),
    ("checkpoints", "inference"),
    ("runtime", "quirks"),
    ("quirks", "errors"),
    ("directories", "errors"),
    ("environment", "known_versions"),
    ("environment", "quirks"),
    ("environment", "errors"),
    ("data", "models"),
}
HEAVY = {"paddle", "paddlenlp", "datasets", "rich", "matplotlib", "numpy", "gguf", "transformers", "torch"}
LIGHT = {"cli", "config", "errors", "directories", "quirks", "runtime", "known_versions", "environment", "__init__"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    if own in ("__init__", "__main__"):
        return
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[0] != "paddlesft" or parts[1] in (own, "__version__"):
            continue
        other = parts[1]
        assert other in LEVELS, f"{path}: {name} is in no room of the plan"
        allowed = LEVELS[other] < LEVELS[own] or (own, other) in SAME_LEVEL
        assert allowed, f"{path}: room {own!r} must not import {name}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in LIGHT], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_light_rooms_import_nothing_heavy_at_module_level(path: Path) -> None:
    top = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.Import | ast.ImportFrom)]
    for name in imports(ast.Module(body=top, type_ignores=[])):
        assert name.split(".")[0] not in HEAVY, f"{path}: {name} must be imported inside the function that needs it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_small_and_named_for_what_they_hold(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 450, f"{path} has {lines} lines: one concept per file"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) != "cli"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        printing = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not printing, f"{path}:{node.lineno} prints; only paddlesft/cli does"


def test_model_type_is_compared_only_in_the_family_table() -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).as_posix() == "models/families.py":
            continue
        assert "model_type ==" not in path.read_text(encoding="utf-8"), f"{path}: ask the family table instead"
