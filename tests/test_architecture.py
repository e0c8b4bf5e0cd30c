"""The house plan holds: imports point down, files stay small, names say what a file is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "paddlesft"
LEVELS = {
    "errors": 0, "directories": 0, "quirks": 0, "runtime": 0, "known_versions": 0, "environment": 0,
    "config": 1,
    "data": 2, "models": 2,
    "tuning": 3, "parallel": 3,
    "inference": 4, "checkpoints": 4, "training": 4, "quantization": 4, "export": 4,
    "serving": 5,
    "cli": 6,
}  # fmt: skip
SAME_LEVEL = {
    ("tuning", "parallel"),
    ("training", "inference"),
    ("training", "checkpoints"),
    ("quantization", "training"),
    ("quantization", "checkpoints"),
    ("checkpoints", "inference"),
    ("export", "inference"),
    ("export", "checkpoints"),
    ("runtime", "quirks"),
    ("quirks", "errors"),
    ("directories", "errors"),
    ("environment", "known_versions"),
    ("environment", "quirks"),
    ("environment", "errors"),
    ("data", "models"),
}
HEAVY = {
    "paddle", "paddlenlp", "datasets", "rich", "matplotlib", "numpy", "gguf", "transformers", "torch",
    "flask", "waitress", "pydantic", "prometheus_client", "gradio", "httpx",
}  # fmt: skip
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


# ---- model families are told apart in the family table and nowhere else ----

FAMILY_TABLE = {"models/families.py", "models/family.py"}
KINDS = {"model_type", "model_types", "base_model_prefix", "base_prefix", "architectures"}
NAMES = {"family", "row"}  # what variables that hold a row of the table are called
GENERAL = ("paddlenlp.transformers.model_utils.", "paddlenlp.transformers.tokenizer_utils")
FAMILY_CODE = ("models/decoders/", "models/fast/", "quirks/")  # rows name what is there


def mentioned(node: ast.AST) -> set[str]:
    """The variables, attributes and string keys that an expression mentions."""
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
    return found


def is_name_of_a_row(node: ast.AST) -> bool:
    """Whether an expression is ``family.name``, ``self.family.name``, ``family_of(...).name`` or ``family_name``."""
    if isinstance(node, ast.Name):
        return node.id == "family_name"
    if not (isinstance(node, ast.Attribute) and node.attr == "name"):
        return False
    owner = node.value.func if isinstance(node.value, ast.Call) else node.value
    last = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return last in NAMES or last.startswith("family_")


def family_checks(source: str) -> list[int]:
    """Return the lines that do one thing for one model family and another for the next.

    That is: a comparison, ``match`` or ``startswith`` of a model type or prefix; the same of a row's name with words
    written in the source; a dictionary written in the source that is asked for a model type or a row's name.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            words = any(isinstance(p, ast.Constant) and isinstance(p.value, str) for s in sides for p in ast.walk(s))
            bad = any(mentioned(s) & KINDS for s in sides) or (words and any(map(is_name_of_a_row, sides)))
        elif isinstance(node, ast.Match):
            bad = bool(mentioned(node.subject) & KINDS) or is_name_of_a_row(node.subject)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = node.func.value if node.func.attr in ("startswith", "endswith") else None
            asked = node.args[0] if node.func.attr == "get" and node.args and not is_word(node.args[0]) else asked
            bad = asked is not None and (bool(mentioned(asked) & KINDS) or is_name_of_a_row(asked))
        elif isinstance(node, ast.Subscript):
            asked = node.slice
            bad = not is_word(asked) and (bool(mentioned(asked) & KINDS) or is_name_of_a_row(asked))
        else:
            continue
        if bad:
            found.append(node.lineno)
    return found


def is_word(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_families_are_told_apart_only_in_the_family_table(path: Path) -> None:
    where = path.relative_to(PACKAGE).as_posix()
    if where in FAMILY_TABLE:
        return
    source = path.read_text(encoding="utf-8")
    assert family_checks(source) == [], f"{path}: make it a field of the family table's rows instead"
    if not where.startswith(FAMILY_CODE):
        inner = [name for name in imports(ast.parse(source)) if re.match(r"paddlenlp\.transformers\.\w+\.", name)]
        assert [name for name in inner if not name.startswith(GENERAL)] == [], f"{path}: only {FAMILY_CODE} may know it"


@pytest.mark.parametrize(
    "source",
    [
        'if config.model_type == "llama": pass',
        'if config["model_type"] in ("llama", "qwen2"): pass',
        'if "glm" in getattr(config, "model_type", ""): pass',
        'x = 1 if model.base_model_prefix != "gpt" else 2',
        'if family.name == "opt": pass',
        'if family_of(config).name in {"opt", "gpt"}: pass',
        'if self.family.name == "bloom": pass',
        "match config.model_type:\n    case 'llama': pass",
        'if config.model_type.startswith("chatglm"): pass',
        "f = {'llama': 1}[config.model_type]",
        "f = {'llama': 1}.get(family.name)",
    ],
)
def test_a_check_of_the_family_is_found(source: str) -> None:
    assert family_checks(source)


@pytest.mark.parametrize(
    "source", ['kind = config.get("model_type")', 'kind = config["model_type"]', "x = family.name", "a = row.packing"]
)
def test_asking_a_row_is_no_check_of_the_family(source: str) -> None:
    assert family_checks(source) == []
