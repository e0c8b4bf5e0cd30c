"""How the whole suite is spread over processes: how many, with how many threads each, and which tests stay together.

These are hooks of pytest-xdist for ``-n auto --dist loadfile --no-loadscope-reorder``, which ``make test`` asks for.
Without ``-n`` none of them acts.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

THREADS = "OMP_NUM_THREADS"
MEMORY_OF_A_WORKER = 7 << 30  # bytes: the peak of the worker that trains the real model in full
MOST_WORKERS = 8  # the longest group takes about a fifth of the whole: more workers would wait for it

# Session fixtures that take longer than about ten seconds. The files that use one run in one worker, one after the
# other, so that it is not made again. The tests of any other file stay together for its module fixtures, but those of
# FAMILY_TESTS are split by the model family in their parameters, whose trained models several files share.
SHARED_FIXTURES = ("finished_demo",)
FAMILY_TESTS = "tests/families/"

# Set by the user? Asked here because paddlesft, when it is imported, chooses a number for a single process.
threads_of_the_user = os.environ.get(THREADS)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def number_of_workers(cores: int, memory: int) -> int:
    """Return how many workers a machine carries.

    Args:
        cores: usable cores.
        memory: of the machine, in bytes.
    """
    return max(1, min(cores, memory // MEMORY_OF_A_WORKER, MOST_WORKERS))


@cache
def group_of_file(file: Path) -> str:
    """Return a shared fixture that a test file uses, else the file."""
    text = file.read_text(encoding="utf-8")
    return next((name for name in SHARED_FIXTURES if re.search(rf"\b{name}\b", text)), str(file))


def group_of(nodeid: str, root: Path) -> str:
    """Return the name of the group of tests that run in one worker, one after the other.

    Args:
        nodeid: pytest's name of the test, ``FILE::TEST[PARAMETERS]``.
        root: the directory from which FILE is named.
    """
    from paddlesft.models.families import FAMILIES

    file, _, test = nodeid.partition("::")
    if file.startswith(FAMILY_TESTS):
        words = re.split(r"[][-]", test)
        family = next((family.name for family in FAMILIES if family.name in words), None)
        if family:
            return f"family {family}"
    return group_of_file(root / file)


def slowest_groups_first(items: list[Any], root: Path) -> list[Any]:
    """Order tests by group, the group with most tests marked ``slow`` first: no long one is left for the end."""
    groups = [group_of(item.nodeid, root) for item in items]
    slow = dict.fromkeys(groups, 0)  # in the order of collection
    for group, item in zip(groups, items):
        slow[group] += item.get_closest_marker("slow") is not None
    position = {group: i for i, group in enumerate(sorted(slow, key=lambda group: -slow[group]))}
    order = sorted(range(len(items)), key=lambda i: position[groups[i]])
    return [items[i] for i in order]


# ---- hooks ----


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``."""
    return number_of_workers(usable_cores(), psutil.virtual_memory().total)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Share the cores among the workers: they inherit this environment, and so do the processes that tests start."""
    if threads_of_the_user is None:
        os.environ[THREADS] = str(max(1, usable_cores() // len(specs)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``. (``loadgroup`` groups nothing with pytest 9.2: pytest-xdist issue 1386.)"""
    from xdist.scheduler import LoadFileScheduling

    class GroupScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid, config.rootpath)

    return GroupScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A worker's tests come in the order of their groups; a single process keeps pytest's order."""
    if hasattr(config, "workerinput"):
        items[:] = slowest_groups_first(items, config.rootpath)
