"""The user's cache: each content once, complete, and explained where it cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.errors import EnvironmentProblem
from paddlesft.models.cache import cache_home, cached_directory


def test_a_directory_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLESFT_HOME", str(tmp_path / "我的 cache"))
    made = []

    def make(scratch: Path) -> None:
        made.append(scratch)
        (scratch / "file").write_text("x")

    first = cached_directory("kind/key", make)
    assert first == tmp_path / "我的 cache" / "kind" / "key"
    assert cached_directory("kind/key", make) == first
    assert (len(made), (first / "file").read_text()) == (1, "x")


def test_a_home_that_cannot_be_written_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PADDLESFT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(EnvironmentProblem) as caught:
        cached_directory("kind/key", lambda scratch: None)
    assert str(caught.value) == (
        f"Cannot write to {tmp_path}/file/home/kind: Not a directory. A file stands where a directory is needed: "
        f"choose another place. The cache is {tmp_path}/file/home; PADDLESFT_HOME names another place for it."
    )


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PADDLESFT_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_home() == tmp_path / "paddlesft"
