"""The table of proven layouts in the documentation is what the tests compare, and a stale one is found."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("write_layout_proofs", REPO / "tools" / "write_layout_proofs.py")
write_layout_proofs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(write_layout_proofs)


def test_the_table_of_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert write_layout_proofs.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_table_is_found_and_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "parallel.md"
    page.parent.mkdir()
    page.write_text(f"before\n{write_layout_proofs.BEGIN}\n\n{write_layout_proofs.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(write_layout_proofs, "REPO", tmp_path)
    assert write_layout_proofs.main(["--check"]) == 1
    assert "docs/parallel.md: the table of proven layouts is out of date" in capsys.readouterr().out
    assert write_layout_proofs.main([]) == 0
    assert write_layout_proofs.main(["--check"]) == 0
    assert "| tensor 2, pipeline 2 | llama" in page.read_text(encoding="utf-8")


def test_a_cell_tells_families_tests_and_packed_rows() -> None:
    make = write_layout_proofs.Proof
    found = [make(0, "llama", "full", "tp2", False), make(0, "llama", "full", "tp2", True),
             make(1, "gpt", "full", "tp2", False)]  # fmt: skip
    assert write_layout_proofs.cell(found) == "llama* ¹; gpt ²"
    assert write_layout_proofs.said("tp2 sp pp2") == "tensor 2 with sequence parallel, pipeline 2"
    assert write_layout_proofs.said("stage2 dp2") == "stage2 × 2, data 2"
    keys = {"pipeline_parallel_degree": 4, "virtual_pp_degree": 2, "per_device_train_batch_size": 1}
    assert write_layout_proofs.said(write_layout_proofs.layout_of(keys)) == "pipeline 4 in 2 chunks each"
    keys = {"tensor_parallel_degree": 2, "sequence_parallel": True, "pipeline_parallel_degree": 2}
    assert write_layout_proofs.layout_of(keys) == "tp2 sp pp2"
