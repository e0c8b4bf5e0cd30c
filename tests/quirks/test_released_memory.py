"""glibc still hands freed tensors back to the kernel, and the setting still stops it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from paddlesft.quirks import released_memory

# Tensors of 3 MB, two alive at a time, as the activations of a small model come and go.
PROGRAM = """
import resource, sys
import paddle
from paddlesft.quirks import released_memory
if sys.argv[1] == "apply":
    assert released_memory.apply()
x = paddle.ones([512, 1536])
def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        y = x + x
        y = y * y
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(5)
print(faults(50))
"""


def faults(how: str) -> int:
    environ = {k: v for k, v in os.environ.items() if k not in released_memory.USER_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env=environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_costs_page_faults_without_the_setting_only() -> None:
    assert faults("leave") > 5000, "paddle or glibc keeps freed memory now: the quirk can be retired"
    assert faults("apply") < 500


@pytest.mark.parametrize("name", released_memory.USER_VARIABLES)
def test_the_users_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert released_memory.apply() is False


# Tensors of growing sizes, every second of which stays: what is freed between them fits no later one.
PIECES = """
import sys
import paddle, psutil
from paddle.base import core
from paddlesft.quirks import released_memory
assert released_memory.apply()
released_memory.EXCESS_SHARE, released_memory.EXCESS_BYTES = 0.0, 64 << 20
base = psutil.Process().memory_info().rss
for size in range(1, 120):
    kept = [paddle.ones([size * 8, 1024]) for _ in range(8)]
held = psutil.Process().memory_info().rss
del kept
returned = released_memory.give_back_excess()
after = psutil.Process().memory_info().rss
again = released_memory.give_back_excess(returned)
print(held - base, after - base, core.host_memory_stat_peak_value("Allocated", 0), int(again == returned))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_memory_beyond_the_tensors_peak_is_given_back() -> None:
    environ = {k: v for k, v in os.environ.items() if k not in released_memory.USER_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", PIECES],
        env=environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    held, after, needed, quiet_the_second_time = map(int, done.stdout.split()[-4:])
    assert held > 50 << 20
    assert after < held / 2, f"{held} bytes were held, {after} are left; the tensors' peak was {needed}"
    assert quiet_the_second_time
