"""What is packaged and how it is installed: ranges, pins, files that travel along, make and .ci/run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def lines(name: str) -> list[str]:
    text = (REPO / name).read_text(encoding="utf-8")
    return [line for line in (line.split("#")[0].strip() for line in text.splitlines()) if line]


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oracle.txt"])
def test_constraints_are_exact_and_unique(name: str) -> None:
    pinned = [re.fullmatch(r"([\w.-]+)==[\w.]+( *; python_version >= \"3\.11\")?", line) for line in lines(name)]
    assert all(pinned), [line for line, match in zip(lines(name), pinned) if not match]
    names = [re.sub(r"[-_.]+", "-", match.group(1)).lower() for match in pinned]
    assert len(names) == len(set(names))


def test_torch_is_asked_for_by_its_exact_version_first() -> None:
    assert "torch==2.13.0" in lines("constraints-oracle.txt")
    plan = subprocess.run(
        ["make", "-n", "-W", "constraints-oracle.txt", ".venv-oracle/.installed"],
        cwd=REPO, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    installs = [line for line in plan.splitlines() if " install " in line]
    assert installs[0].endswith(" torch==2.13.0")
    assert installs[1].endswith(" -r constraints-oracle.txt")


def test_the_licence_is_apache_2() -> None:
    text = (REPO / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_wheel_holds_code_samples_templates_and_licence(tmp_path: Path) -> None:
    for entry in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "paddlesft"):
        (tmp_path / entry).symlink_to(REPO / entry)
    subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "-q", "bdist_wheel", "--dist-dir", "dist"],
        cwd=tmp_path, capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        metadata = archive.read(next(name for name in packed if name.endswith("/METADATA"))).decode("utf-8")
    for path in (REPO / "paddlesft").rglob("*"):
        if path.suffix in {".py", ".jinja", ".json", ".jsonl", ".yaml"}:
            assert path.relative_to(REPO).as_posix() in packed
    assert not any(name.startswith("tests") for name in packed)
    assert any(name.endswith("LICENSE") for name in packed)
    assert "Requires-Python: >=3.10,<3.13" in " ".join(metadata.split()).replace("<3.13,>=3.10", ">=3.10,<3.13")
    for extra in ("demo", "gpu", "quant", "serve", "test"):
        assert f"Provides-Extra: {extra}" in metadata
    for requirement in ("paddlenlp==3.0.0b4", "aistudio-sdk==0.2.6"):
        assert f"Requires-Dist: {requirement}" in metadata


def ci(tmp_path: Path, said: str, status: int) -> subprocess.CompletedProcess[str]:
    """Run .ci/run with a make that says something and ends with a status."""
    make = tmp_path / "make"
    make.write_text(f"#!/bin/sh\necho called: $@, CI=$CI\ncat <<'END'\n{said}\nEND\nexit {status}\n")
    make.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environ.pop("CI", None)
    return subprocess.run([REPO / ".ci" / "run"], env=environ, capture_output=True, text=True, timeout=60)


def test_ci_runs_lint_and_tests_and_ends_with_their_summary(tmp_path: Path) -> None:
    done = ci(tmp_path, "........\n===== 8 passed, 1 warning in 61.20s (0:01:01) =====", 0)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "called: --keep-going lint test, CI=true"
    assert done.stdout.splitlines()[-1] == "===== 8 passed, 1 warning in 61.20s (0:01:01) ====="


@pytest.mark.parametrize("summary", ["=== 1 failed, 7 passed in 3.10s ===", "1 failed, 7 passed in 3.10s"])
def test_ci_fails_when_a_test_fails_and_repeats_the_summary(tmp_path: Path, summary: str) -> None:
    done = ci(tmp_path, f"..F.....\n{summary}\nmake: *** [Makefile:33: test] Error 1", 2)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == summary


def test_ci_fails_when_only_lint_fails(tmp_path: Path) -> None:
    done = ci(tmp_path, "E501 line too long\n=== 8 passed in 3.10s ===", 2)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "=== 8 passed in 3.10s ==="


@pytest.mark.parametrize(
    "words, slow_too",
    [(["test"], False), (["test", "CI=true"], True), (["test", "ARGS=tests/data"], True), (["test-all"], True)],
)
def test_only_ci_and_those_who_ask_wait_for_slow_tests(words: list[str], slow_too: bool) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ("CI", "MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", "--dry-run", "--silent", *words], cwd=REPO, env=environ, capture_output=True, text=True, timeout=60
    )
    asked = [line for line in done.stdout.splitlines() if "-m pytest" in line]
    assert len(asked) == 1
    assert ("-m 'not slow'" not in asked[0]) == slow_too
    assert ("make test-all runs them, too" not in done.stdout) == slow_too
