"""``import paddlesft; import paddlenlp`` survives an aistudio-sdk that is missing or too new, and says so."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddlesft import known_versions
from paddlesft.errors import EnvironmentProblem
from paddlesft.quirks import aistudio_hub

REPO = Path(__file__).resolve().parents[2]

# What paddlenlp does at import, and what a user would see on calling it.
IMPORT_BOTH = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
import paddlesft
import paddlenlp
from paddlenlp.transformers import AutoModelForCausalLM
from aistudio_sdk.hub import download
try:
    download(repo_id="a/b", filename="c")
except Exception as error:
    print(type(error).__name__, error)
"""


def write_package(directory: Path, hub: str, version: str = "0.3.9") -> Path:
    package = directory / "aistudio_sdk"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from aistudio_sdk import hub\n")
    (package / "hub.py").write_text(hub)
    metadata = directory / f"aistudio_sdk-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: aistudio-sdk\nVersion: {version}\n")
    return directory


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, REPO]))},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_too_new_version_first_on_the_path_is_survived_with_an_explanation(tmp_path: Path) -> None:
    done = python(IMPORT_BOTH, write_package(tmp_path, "def create_repo(**kwargs):\n    pass\n"))
    assert done.returncode == 0, done.stderr[-2000:]
    warning = next(line for line in done.stderr.splitlines() if line.startswith("WARNING aistudio-sdk"))
    assert warning == (
        "WARNING aistudio-sdk 0.3.9 has no hub.download: downloads from AI Studio are off, everything else works "
        "(paddlenlp imports it all the same, so a stand-in takes its place). To get them back: "
        "pip install 'aistudio-sdk==0.2.6'."
    )
    assert done.stdout.splitlines()[-1].startswith("EnvironmentProblem aistudio-sdk 0.3.9 has no hub.download")


def test_missing_package_is_survived_with_an_explanation() -> None:
    # A finder that hides the installed package and its metadata, as if pip had never brought it.
    hide = """
import importlib.machinery, importlib.metadata
real_find, real_version = importlib.machinery.PathFinder.find_spec, importlib.metadata.version
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] == "aistudio_sdk" else real_find(name, path, target)
def version(name):
    if name == "aistudio-sdk":
        raise importlib.metadata.PackageNotFoundError(name)
    return real_version(name)
importlib.machinery.PathFinder.find_spec, importlib.metadata.version = find_spec, version
"""
    done = python(hide + IMPORT_BOTH)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING aistudio-sdk is not installed: downloads from AI Studio are off" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("EnvironmentProblem aistudio-sdk is not installed")


def test_without_the_stand_in_paddlenlp_does_not_import(tmp_path: Path) -> None:
    """Fails once paddlenlp imports without hub.download: then this workaround can go."""
    done = python("import paddlenlp", write_package(tmp_path, "def create_repo(**kwargs):\n    pass\n"))
    assert done.returncode != 0
    assert "cannot import name 'download' from 'aistudio_sdk.hub'" in done.stderr


@pytest.mark.parametrize(
    "hub, expected",
    [
        ("def download(**kwargs):\n    pass\n", True),
        ("from aistudio_sdk.file_download import download\n", True),
        ("download = None\n", True),
        ("class Hub:\n    def download(self):\n        pass\n", False),
        ("# download was here\n", False),
        ("from aistudio_sdk.file_download import download_file\n", False),
    ],
)
def test_the_module_on_the_path_decides(tmp_path: Path, hub: str, expected: bool) -> None:
    assert aistudio_hub.works([str(write_package(tmp_path, hub))]) is expected


def test_no_package_does_not_work(tmp_path: Path) -> None:
    assert aistudio_hub.works([str(tmp_path)]) is False


def test_the_installed_version_works_and_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert importlib.metadata.version("aistudio-sdk") == aistudio_hub.WORKING
    assert aistudio_hub.works()
    with caplog.at_level(logging.WARNING, logger="paddlesft"):
        assert aistudio_hub.apply() is False
    assert not aistudio_hub.is_stand_in()
    assert caplog.records == []


def test_the_stand_in_explains_itself_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "aistudio_sdk"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(aistudio_hub, "works", lambda: False)
    monkeypatch.setattr(aistudio_hub, "installed_version", lambda: None)
    # recorded as absent, so that monkeypatch takes the stand-in out again
    monkeypatch.setitem(sys.modules, "aistudio_sdk", None)
    monkeypatch.setitem(sys.modules, "aistudio_sdk.hub", None)
    del sys.modules["aistudio_sdk"], sys.modules["aistudio_sdk.hub"]
    assert aistudio_hub.apply() is True
    assert aistudio_hub.is_stand_in()
    from aistudio_sdk.hub import upload

    with pytest.raises(EnvironmentProblem, match=r"^aistudio-sdk is not installed: downloads from AI Studio are off"):
        upload(repo_id="a/b")


def test_the_version_named_is_the_one_in_the_table() -> None:
    part = next(part for part in known_versions.CORE if part.name == "aistudio-sdk")
    assert part.tested == aistudio_hub.WORKING
