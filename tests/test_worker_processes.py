"""The whole suite runs in several processes: how many, what stays together, what comes first, and what is shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import worker_processes
from tests.worker_processes import number_of_workers

REPO = Path(__file__).resolve().parent.parent

# Every test says in which process it ran and with how many threads; a.py and c.py use a shared fixture.
TEST_FILE = """
import os
import pytest

{mark}
@pytest.mark.parametrize("part", "one two three four five six".split())
def test_it(part{fixture}):
    with open({seen!r}, "a") as file:
        file.write(f"{letter} {{os.getpid()}} {{os.environ['OMP_NUM_THREADS']}}\\n")
    assert part != {broken!r}
"""
CONFTEST = """
import pytest
from tests.worker_processes import *

@pytest.fixture(scope="session")
def finished_demo():
    return 1
"""


@pytest.mark.parametrize(
    "cores, gib, workers",
    [(2, 23, 2), (1, 23, 1), (2, 7, 1), (2, 3, 1), (4, 23, 3), (64, 500, 8)],
)
def test_a_machine_gets_as_many_workers_as_it_has_cores_and_memory_for(cores: int, gib: int, workers: int) -> None:
    assert number_of_workers(cores, gib << 30) == workers


def test_the_shared_fixtures_are_session_fixtures() -> None:
    text = (REPO / "tests" / "conftest.py").read_text(encoding="utf-8")
    for name in worker_processes.SHARED_FIXTURES:
        assert re.search(rf'^@pytest.fixture\(scope="session"\)\ndef {name}\(', text, re.MULTILINE)


@pytest.mark.parametrize(
    "test, group",
    [
        ("test_a.py::test_it[glm-full]", "family glm"),
        ("test_b.py::test_it[lora-chatglm_v2]", "family chatglm_v2"),
        ("test_b.py::test_it[full-glm4]", "test_b.py"),
        ("test_b.py::test_it", "test_b.py"),
    ],
)
def test_tests_of_families_are_grouped_by_the_family_in_their_parameters(tmp_path: Path, test: str, group: str) -> None:
    folder = tmp_path / worker_processes.FAMILY_TESTS
    folder.mkdir(parents=True)
    (folder / "test_b.py").write_text("")
    expected = group if group.startswith("family") else str(folder / group)
    assert worker_processes.group_of(worker_processes.FAMILY_TESTS + test, tmp_path) == expected


def test_files_and_shared_fixtures_stay_in_one_worker_and_slow_ones_come_first(tmp_path: Path) -> None:
    """With the options of ``make test``; they group nothing any more if pytest-xdist stops asking ``_split_scope``."""
    seen = tmp_path / "seen.txt"
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for letter, fixture, mark, broken in (
        ("a", ", finished_demo", "", "four"),
        ("b", "", "", ""),
        ("c", ", finished_demo", "@pytest.mark.slow", ""),
        ("d", "", "", ""),
    ):
        text = TEST_FILE.format(letter=letter, fixture=fixture, mark=mark, seen=str(seen), broken=broken)
        (tmp_path / f"test_{letter}.py").write_text(text)
    options = re.search(r"^WORKERS := -n auto (.+)$", (REPO / "Makefile").read_text(), re.MULTILINE).group(1)
    environ = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS" and not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", *options.split(), "-o", "markers=slow: slow"],
        cwd=tmp_path,
        env={**environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "FAILED test_a.py::test_it[four]" in done.stdout, done.stdout + done.stderr
    assert re.search(r"^=+ 1 failed, 23 passed in .*=$", done.stdout.splitlines()[-1])
    lines = [line.split() for line in seen.read_text().splitlines()]
    processes = {letter: {pid for name, pid, _ in lines if name == letter} for letter in "abcd"}
    assert all(len(pids) == 1 for pids in processes.values()), processes
    assert processes["a"] == processes["c"]
    assert processes["b"] != processes["a"]
    first = [name for name, pid, _ in lines if {pid} == processes["a"]]
    assert first[:12] == ["a"] * 6 + ["c"] * 6
    assert {threads for *_, threads in lines} == {str(max(1, worker_processes.usable_cores() // 2))}
