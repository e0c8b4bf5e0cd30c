"""What this machine offers, held against what is known to work: the library behind ``paddlesft doctor``.

Versions are read from package metadata. Paddle itself is imported in a separate process, so that a build that crashes
on import is reported like any other problem.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from paddlesft import known_versions
from paddlesft.errors import EnvironmentProblem
from paddlesft.known_versions import Part
from paddlesft.quirks import aistudio_hub, mkl_on_amd

Status = Literal["ok", "note", "problem"]
VersionOf = Callable[[str], "str | None"]

MEMORY_NEEDED = 4 << 30  # bytes; LoRA of the embedded 135M model in fp32 peaks below this
DISK_NEEDED = 2 << 30  # bytes; an imported model, an adapter with checkpoints and a merged model of that size

# Run in a process of its own; prints one JSON line.
_PROBE = """
import json, sys
import paddlesft, paddle
facts = {"version": paddle.__version__, "cuda": paddle.version.cuda() if paddle.is_compiled_with_cuda() else None}
gpus = []
if paddle.is_compiled_with_cuda():
    for i in range(paddle.device.cuda.device_count()):
        card = paddle.device.cuda.get_device_properties(i)
        gpus.append({"name": card.name, "memory": int(card.total_memory), "capability": f"{card.major}.{card.minor}"})
facts["gpus"] = gpus
facts["device"] = paddle.device.get_device()
import paddlenlp
facts["paddlenlp"] = paddlenlp.__version__
print("PROBE " + json.dumps(facts))
"""


@dataclass(frozen=True)
class Finding:
    """One fact about the machine and what to think of it.

    Attributes:
        topic: what was looked at: a package's name, ``memory``, ``device`` and so on.
        status: ``ok``; ``note``, which limits something but not the main path; ``problem``, which has to be mended.
        found: what is there.
        wanted: what is known to work; empty where there is nothing to compare with.
        action: what to do about it; empty when status is ``ok``.
    """

    topic: str
    status: Status
    found: str
    wanted: str = ""
    action: str = ""


@dataclass
class Report:
    """All findings: ``packages`` and ``machine`` in the order shown, ``extras`` as extra -> findings."""

    machine: list[Finding] = field(default_factory=list)
    packages: list[Finding] = field(default_factory=list)
    extras: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """Every finding, in the order shown."""
        return [*self.machine, *self.packages, *(f for group in self.extras.values() for f in group)]

    @property
    def healthy(self) -> bool:
        """Whether no finding is a problem."""
        return all(finding.status != "problem" for finding in self.findings)

    def as_dict(self) -> dict:
        """Return the report as plain values for JSON."""
        return {"healthy": self.healthy, **asdict(self)}


def installed_version(name: str) -> str | None:
    """Return the version of an installed package from its metadata, or None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def within(version: str, allowed: str) -> bool:
    """Tell whether a version lies in a range.

    Args:
        version: for example ``3.0.0b4``.
        allowed: a version specifier, for example ``>=3.0,<3.4,!=3.2.*``; empty allows every version.

    Raises:
        EnvironmentProblem: the ``packaging`` package, which knows how to compare, is missing.
    """
    try:
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion
    except ImportError as error:
        raise EnvironmentProblem(
            "The Python package 'packaging' is missing, so versions cannot be compared. Run: pip install packaging"
        ) from error
    try:
        return SpecifierSet(allowed).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def check_part(part: Part, version: str | None, absent: Status = "problem", command: str | None = None) -> Finding:
    """Compare one package with what is known to work.

    Args:
        part: the package and its range.
        version: the version found, or None when it is not installed.
        absent: how bad it is when the package is not installed.
        command: what mends it; a pip command with the tested version when None.
    """
    wanted = f"{part.allowed} (tested {part.tested})"
    command = command or f"pip install '{part.name}=={part.tested}'"
    if version is None:
        return Finding(part.name, absent, "not installed", wanted, f"{command}   # {part.purpose}")
    if not within(version, part.allowed):
        return Finding(part.name, "problem", version, wanted, f"{command}   # {part.purpose}")
    return Finding(part.name, "ok", version, wanted)


def check_framework(version_of: VersionOf) -> Finding:
    """Check that exactly one build of Paddle is installed, for CPU or for GPU, in a version that works."""
    part = known_versions.CORE[0]
    cpu, gpu = version_of(part.name), version_of(known_versions.GPU_FRAMEWORK)
    if cpu and gpu:
        return Finding(
            part.name,
            "problem",
            f"{part.name} {cpu} and {known_versions.GPU_FRAMEWORK} {gpu}",
            "one of the two: both write the same files",
            f"pip uninstall {part.name} {known_versions.GPU_FRAMEWORK}; then install one of them (docs/install.md)",
        )
    if gpu:
        gpu_part = part._replace(name=known_versions.GPU_FRAMEWORK)
        return check_part(gpu_part, gpu, command=f"install {gpu_part.name} {part.tested} (docs/install.md)")
    return check_part(part, cpu)


def check_protobuf(version_of: VersionOf) -> Finding:
    """Check protobuf against its range and against the Paddle beside it: below 3.3 it needs protobuf below 7."""
    part = next(part for part in known_versions.CORE if part.name == "protobuf")
    version = version_of(part.name)
    paddle = version_of(known_versions.GPU_FRAMEWORK) or version_of("paddlepaddle")
    if version and paddle and within(paddle, "<3.3") and not within(version, "<7"):
        return Finding(
            part.name,
            "problem",
            f"{version} beside paddlepaddle {paddle}",
            "below 7 with paddlepaddle below 3.3",
            "pip install 'protobuf<7'   # hybrid parallel training fails with this pair",
        )
    return check_part(part, version)


def check_aistudio(version_of: VersionOf) -> Finding:
    """Check aistudio-sdk; a wrong or missing one limits downloads from AI Studio and nothing else."""
    part = next(part for part in known_versions.CORE if part.name == "aistudio-sdk")
    version = version_of(part.name)
    if version and within(version, part.allowed) and not aistudio_hub.is_stand_in():
        return check_part(part, version)
    found = version or "not installed"
    if version and within(version, part.allowed):
        found += ", but another module named aistudio_sdk comes first on Python's path"
    wanted = f"{part.allowed} (tested {part.tested})"
    return Finding(part.name, "note", found, wanted, aistudio_hub.explanation(version))


def check_packages(version_of: VersionOf = installed_version) -> list[Finding]:
    """Check every package the core needs.

    Args:
        version_of: gives the version of a package by name, None when absent.
    """
    special = {"paddlepaddle": check_framework, "protobuf": check_protobuf, "aistudio-sdk": check_aistudio}
    return [
        special[part.name](version_of) if part.name in special else check_part(part, version_of(part.name))
        for part in known_versions.CORE
    ]


def check_extras(version_of: VersionOf = installed_version) -> dict[str, list[Finding]]:
    """Check the optional parts. A missing one is a note, one in a version that does not work is a problem.

    Args:
        version_of: gives the version of a package by name, None when absent.

    Returns:
        Extra -> findings; the embedded model counts as a part of ``demo``.
    """
    report = {
        extra: [check_part(part, version_of(part.name), absent="note") for part in parts]
        for extra, parts in known_versions.EXTRAS.items()
    }
    model = known_versions.EMBEDDED_MODEL
    command = known_versions.EMBEDDED_MODEL_COMMAND
    report["demo"].append(check_part(model, version_of(model.name), absent="note", command=command))
    return report


def check_python(version: tuple[int, int, int] = sys.version_info[:3]) -> Finding:
    """Check the version of the interpreter."""
    found = ".".join(map(str, version))
    wanted = f"{known_versions.PYTHON_ALLOWED} (tested {known_versions.PYTHON_TESTED})"
    if within(found, known_versions.PYTHON_ALLOWED):
        return Finding("python", "ok", found, wanted)
    tested = known_versions.PYTHON_TESTED
    return Finding("python", "problem", found, wanted, f"make a virtual environment with Python {tested}")


def check_platform(system: str | None = None, machine: str | None = None) -> Finding:
    """Check the operating system and the processor's architecture."""
    found = (system or platform.system(), machine or platform.machine())
    if found in (("Linux", "x86_64"), ("Linux", "AMD64")):
        return Finding("platform", "ok", " ".join(found), "Linux x86_64")
    return Finding("platform", "note", " ".join(found), "Linux x86_64", "not tested here; run the tests: make test")


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Report the processor, the usable cores, the threads in use and, on AMD, the switch that makes MKL fast."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    found = f"{names[0] if names else platform.machine()}, {cores} cores, {threads or '?'} threads"
    if "AuthenticAMD" in text:
        switch = os.environ.get(mkl_on_amd.VARIABLE)
        found += f", {mkl_on_amd.VARIABLE}={switch or 'unset'}"
        if switch != "5":
            action = f"unset {mkl_on_amd.VARIABLE}, or set it to 5: matrix products are slow on AMD without it"
            return Finding("processor", "note", found, f"{mkl_on_amd.VARIABLE}=5 on AMD", action)
    if threads.isdigit() and int(threads) > cores:
        action = "unset OMP_NUM_THREADS: more threads than cores slow each other down"
        return Finding("processor", "note", found, f"at most {cores} threads", action)
    return Finding("processor", "ok", found)


def memory_available(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the bytes of memory that this process may still take, a container's limit taken into account.

    Returns:
        Bytes; 0 when the machine does not tell.
    """
    available = 0
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
    if limit.is_file():
        text = limit.read_text(encoding="utf-8").strip()
        if text.isdigit():
            available = min(available, int(text)) if available else int(text)
    return available


def check_memory(available: int | None = None) -> Finding:
    """Check the free memory, in bytes; it is measured when not given."""
    available = memory_available() if available is None else available
    wanted = f"{gigabytes(MEMORY_NEEDED)} for the embedded model"
    if available == 0:
        return Finding("memory", "note", "not known on this system", wanted, "make sure that this much is free")
    if available < MEMORY_NEEDED:
        action = "close other programs, or use a machine with more memory"
        return Finding("memory", "problem", f"{gigabytes(available)} free", wanted, action)
    return Finding("memory", "ok", f"{gigabytes(available)} free", wanted)


def check_disk(directory: Path | None = None, free: int | None = None) -> Finding:
    """Check the free space, in bytes, where runs are written: the current directory unless one is given."""
    directory = directory or Path.cwd()
    free = shutil.disk_usage(directory).free if free is None else free
    wanted = f"{gigabytes(DISK_NEEDED)} for a run of the embedded model"
    if free < DISK_NEEDED:
        action = "make room, or work in a directory on another disk"
        return Finding("disk", "problem", f"{gigabytes(free)} free at {directory}", wanted, action)
    return Finding("disk", "ok", f"{gigabytes(free)} free at {directory}", wanted)


def probe_paddle(timeout: float = 180) -> dict:
    """Import paddle and paddlenlp in a new process and tell what came of it.

    Args:
        timeout: seconds to wait.

    Returns:
        ``version``, ``cuda`` (None for a CPU build), ``gpus`` (name, memory in bytes, capability), ``device`` and
        ``paddlenlp``; or ``error`` with what went wrong, in one line.
    """
    # the new process has to find this package, behind whatever the user has put on the path
    path = filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parent.parent)])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=timeout, env=environ
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing took more than {timeout:g} s"}
    for line in done.stdout.splitlines():
        if line.startswith("PROBE "):
            return json.loads(line.removeprefix("PROBE "))
    if done.returncode < 0:
        return {"error": f"the process was killed by signal {-done.returncode} while importing"}
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": said[-1].strip() if said else f"the process ended with status {done.returncode}"}


def check_device(facts: dict) -> Finding:
    """Report the device that training will use, from the answer of ``probe_paddle``."""
    if "error" in facts:
        action = "mend the packages listed below; the tested set: pip install -c constraints.txt -e ."
        return Finding("device", "problem", f"paddle and paddlenlp do not import: {facts['error']}", "", action)
    if facts["cuda"] is None:
        return Finding("device", "ok", f"CPU (paddlepaddle {facts['version']}, CPU build)")
    cards = [f"{g['name']} ({gigabytes(g['memory'])}, compute capability {g['capability']})" for g in facts["gpus"]]
    build = f"paddlepaddle {facts['version']}, CUDA {facts['cuda']} build"
    if not cards:
        action = "check the driver with nvidia-smi and CUDA_VISIBLE_DEVICES; or install the CPU build (docs/install.md)"
        return Finding("device", "problem", f"no GPU is visible ({build})", "a GPU for a GPU build", action)
    return Finding("device", "ok", f"{len(cards)} GPU: {'; '.join(cards)} ({build})")


def gigabytes(size: int) -> str:
    """Return a number of bytes as ``1.5 GiB``."""
    return f"{size / (1 << 30):.1f} GiB"


def examine(import_paddle: bool = True) -> Report:
    """Look at the whole machine.

    Args:
        import_paddle: import paddle and paddlenlp (some seconds) to see the device; without it only metadata is read.

    Returns:
        The report; nothing is raised for what is wrong with the machine.
    """
    machine = [check_python(), check_platform(), check_processor(), check_memory(), check_disk()]
    if import_paddle and importlib.util.find_spec("paddle") is None:
        machine.append(check_device({"error": "paddle is not installed"}))
    elif import_paddle:
        machine.append(check_device(probe_paddle()))
    return Report(machine, check_packages(), check_extras())
