"""A model that two ranks (gloo processes) share, driven by the first of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.parallel.ranks import launch, launch_well


@pytest.mark.slow
def test_replies_of_two_ranks_are_those_of_one_process(tiny_llama: Path, tmp_path: Path) -> None:
    launch_well(2, "serve_ranks.py", tiny_llama, tmp_path / "out.json", logs=tmp_path / "logs", seconds=120)
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["tokens"] == found["alone"]
    assert [len(tokens) for tokens in found["tokens"]] == [8, 11, 14, 17, 20]
    assert found["reasons"] == ["length"] * 5 and found["failed"] is None


@pytest.mark.slow
def test_a_rank_that_dies_ends_all_replies_with_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    finished = launch(
        2, "serve_ranks.py", tiny_llama, tmp_path / "out.json", "lose", logs=tmp_path / "logs", seconds=120
    )
    assert finished.code != 0
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["reasons"] == ["error", "error"], finished.report()
    assert found["failed"]
