"""Directories appear complete or not at all, and nothing that exists is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddlesft.directories import new_directory, refuse_inside, write_json
from paddlesft.errors import UserError


def leftovers(parent: Path, *expected: str) -> list[str]:
    return sorted(entry.name for entry in parent.iterdir() if entry.name not in expected)


def test_the_directory_appears_when_the_block_has_succeeded(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "model"
    with new_directory(target) as scratch:
        (scratch / "config.json").write_text("{}")
        assert not target.exists()
        assert scratch.parent == target.parent  # the same file system, so that the rename is atomic
    assert (target / "config.json").read_text() == "{}"
    assert leftovers(target.parent, "model") == []
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on purpose"), new_directory(tmp_path / "model") as scratch:
        (scratch / "half").write_text("x")
        raise ValueError("on purpose")
    assert leftovers(tmp_path) == []


def test_an_interruption_leaves_nothing_behind_and_the_old_content_stays(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), new_directory(target, overwrite=True) as scratch:
        (scratch / "new").write_text("new")
        raise KeyboardInterrupt
    assert leftovers(tmp_path, "model") == []
    assert [entry.name for entry in target.iterdir()] == ["old"]


def test_overwrite_replaces_the_old_content_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    with new_directory(target, overwrite=True) as scratch:
        (scratch / "new").write_text("new")
        assert (target / "old").exists()
    assert [entry.name for entry in target.iterdir()] == ["new"]
    assert leftovers(tmp_path, "model") == []


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    with new_directory(target) as scratch:
        (scratch / "new").write_text("new")
    assert (target / "new").exists()


def test_a_directory_with_content_is_refused_before_any_work(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(UserError) as caught, new_directory(target):
        pytest.fail("the block must not run")
    assert str(caught.value) == (
        f"Cannot write to {target}: it is a directory that is not empty. Nothing was changed. "
        "Choose a directory that does not exist yet, or let --overwrite replace this one."
    )
    assert (target / "old").read_text() == "old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "model"
    target.write_text("precious")
    with (
        pytest.raises(UserError, match=r"it is a file\. .* yet, or remove it first\.$"),
        new_directory(target, overwrite=overwrite),
    ):
        pytest.fail("the block must not run")
    assert target.read_text() == "precious"


def test_a_symbolic_link_is_never_replaced(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    target = tmp_path / "model"
    target.symlink_to(elsewhere)
    with (
        pytest.raises(UserError, match=r"it is a symbolic link\. .* or remove it first\.$"),
        new_directory(target, overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert (elsewhere / "precious").exists()


def test_a_file_in_the_way_of_a_parent_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError) as caught, new_directory(tmp_path / "notes.txt" / "model"):
        raise AssertionError("the block must not be entered")
    assert str(caught.value) == (
        f"Cannot write to {tmp_path}/notes.txt/model: {tmp_path}/notes.txt is a file, and a directory is needed there. "
        "Nothing was changed. Choose a place that does not lie below a file."
    )
    assert leftovers(tmp_path, "notes.txt") == []


def test_a_json_file_replaces_the_earlier_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"name": "模型", "steps": 3})
    with pytest.raises(TypeError):
        write_json(path, {"broken": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "模型", "steps": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize(("place", "where"), [("model", "is"), ("model/deeper/new", "lies in"), ("link", "is")])
def test_a_directory_does_not_take_the_place_of_its_source(place: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    with pytest.raises(UserError, match=rf"Cannot write to \S+{place}: it {where} the directory that is read,"):
        refuse_inside(tmp_path / place, None, tmp_path / "model")
    refuse_inside(tmp_path / "model-new", tmp_path / "model")
