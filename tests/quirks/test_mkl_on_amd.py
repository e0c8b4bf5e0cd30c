"""The MKL switch is set on AMD processors only, and never against the user."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from paddlesft.quirks import mkl_on_amd

AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n"
INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\n"

# Median seconds of a single-precision product of two 1024 x 1024 matrices; of CPU, because the machine may be busy.
GEMM = """
import statistics, time, paddle
a = paddle.randn([1024, 1024])
paddle.matmul(a, a)
times = []
for _ in range(9):
    start = time.process_time()
    float(paddle.matmul(a, a)[0, 0])
    times.append(time.process_time() - start)
print(statistics.median(times))
"""


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(AMD)
    return path


def test_it_is_set_on_amd(cpuinfo: Path) -> None:
    environ: dict[str, str] = {}
    assert mkl_on_amd.apply(environ, cpuinfo) is True
    assert environ == {"MKL_DEBUG_CPU_TYPE": "5"}


def test_it_is_not_set_on_intel(cpuinfo: Path) -> None:
    cpuinfo.write_text(INTEL)
    environ: dict[str, str] = {}
    assert mkl_on_amd.apply(environ, cpuinfo) is False
    assert environ == {}


def test_the_users_value_stays(cpuinfo: Path) -> None:
    environ = {"MKL_DEBUG_CPU_TYPE": "4"}
    assert mkl_on_amd.apply(environ, cpuinfo) is False
    assert environ == {"MKL_DEBUG_CPU_TYPE": "4"}


def test_a_system_without_cpuinfo_is_left_alone(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    assert mkl_on_amd.apply(environ, tmp_path / "absent") is False
    assert environ == {}


def seconds(**environ: str) -> float:
    clean = {key: value for key, value in os.environ.items() if key != mkl_on_amd.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", GEMM],
        env={**clean, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return float(done.stdout.split()[-1])


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").is_file() or "AuthenticAMD" not in Path("/proc/cpuinfo").read_text(),
    reason="the switch only matters on AMD processors, and this is none",
)
def test_it_still_pays_on_this_machine() -> None:
    """Fails once paddle's MKL is fast on AMD by itself: then this workaround can go."""
    pairs = [(seconds(), seconds(MKL_DEBUG_CPU_TYPE="5")) for _ in range(2)]
    ratio = statistics.median(plain / switched for plain, switched in pairs)
    assert ratio > 1.2, f"the switch makes matrix products only {ratio:.2f} times as fast"
