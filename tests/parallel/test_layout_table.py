"""The decision table in the documentation is what the estimator says, and a stale one is found."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("write_layout_table", REPO / "tools" / "write_layout_table.py")
write_layout_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(write_layout_table)


def test_the_table_of_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert write_layout_table.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_table_is_found_and_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "parallel.md"
    page.parent.mkdir()
    page.write_text(f"before\n{write_layout_table.BEGIN}\n\n{write_layout_table.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(write_layout_table, "REPO", tmp_path)
    monkeypatch.setattr(write_layout_table, "CASES", [("Qwen2 72B", "full", (16,))])
    assert write_layout_table.main(["--check"]) == 1
    assert "docs/parallel.md: the table of layouts is out of date" in capsys.readouterr().out
    assert write_layout_table.main([]) == 0
    assert write_layout_table.main(["--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| Qwen2 72B | full | 16 | any | does not fit |" in text


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"docs/parallel\.md has no place for the table"):
        write_layout_table.with_table("nothing")


def test_the_page_says_that_nothing_was_measured() -> None:
    text = (REPO / "docs" / "parallel.md").read_text(encoding="utf-8")
    assert "**Computed, not measured**" in text
