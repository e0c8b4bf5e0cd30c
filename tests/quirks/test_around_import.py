"""Code around the import of a module, once."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paddlesft.quirks.around_import import around_import

events: list[str] = []


@contextlib.contextmanager
def noted() -> Iterator[None]:
    events.append("before")
    try:
        yield
    finally:
        events.append("after")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that notes its own import."""
    events.clear()
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield "imported_inside_a_context"
    sys.modules.pop("imported_inside_a_context", None)
    sys.meta_path[:] = finders


def test_it_runs_once_and_takes_itself_away(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(f"from {__name__} import events\nevents.append('module')\n")
    finders = list(sys.meta_path)
    assert around_import(module, noted)
    assert not around_import(module, noted)
    importlib.import_module(module)
    assert events == ["before", "module", "after"]
    assert sys.meta_path == finders
    assert not around_import(module, noted)


def test_an_error_of_the_module_comes_through(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("raise OSError('of the module')\n")
    around_import(module, noted)
    with pytest.raises(OSError, match="of the module"):
        importlib.import_module(module)
    assert events == ["before", "after"]


def test_a_module_that_is_not_there_is_missing_as_ever(module: str) -> None:
    around_import(module, noted)
    with pytest.raises(ModuleNotFoundError, match=module):
        importlib.import_module(module)
    assert events == []
