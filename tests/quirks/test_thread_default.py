"""All usable cores are used by default, shared among the ranks of one machine, and never against the user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from paddlesft.quirks import thread_default


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


def test_a_single_process_takes_all_usable_cores(four_cores: None) -> None:
    environ: dict[str, str] = {}
    assert thread_default.apply(environ) is True
    assert environ["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("ranks, threads", [("2", "2"), ("3", "1"), ("8", "1")])
def test_ranks_share_the_cores(four_cores: None, ranks: str, threads: str) -> None:
    environ = {"PADDLE_TRAINERS_NUM": ranks}
    thread_default.apply(environ)
    assert environ["OMP_NUM_THREADS"] == threads


def test_only_the_ranks_of_this_machine_count(four_cores: None) -> None:
    environ = {"PADDLE_TRAINERS_NUM": "8", "PADDLE_LOCAL_SIZE": "2"}
    thread_default.apply(environ)
    assert environ["OMP_NUM_THREADS"] == "2"


def test_the_users_value_stays(four_cores: None) -> None:
    environ = {"OMP_NUM_THREADS": "3"}
    assert thread_default.apply(environ) is False
    assert environ == {"OMP_NUM_THREADS": "3"}


def test_a_system_without_affinity_counts_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    environ: dict[str, str] = {}
    thread_default.apply(environ)
    assert environ["OMP_NUM_THREADS"] == "6"


def test_paddle_still_falls_back_to_one_thread() -> None:
    """Fails once paddle no longer sets OMP_NUM_THREADS=1 by itself: then this workaround can go."""
    clean = {key: value for key, value in os.environ.items() if key != thread_default.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", "import os, paddle; print('threads', os.environ.get('OMP_NUM_THREADS'))"],
        env=clean,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1] == "threads 1"


def test_threads_are_divided_among_ranks_unless_the_user_has_set_them(
    four_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_default, "_chosen_here", set())
    environ: dict[str, str] = {"OMP_NUM_THREADS": "4"}  # the user's
    thread_default.divide(environ, 2)
    assert environ == {"OMP_NUM_THREADS": "4"}
    environ = {}
    thread_default.apply(environ)
    thread_default.divide(environ, 2)
    assert environ == {"OMP_NUM_THREADS": "2"}
    thread_default.divide({}, 2)  # paddle's launcher decides
