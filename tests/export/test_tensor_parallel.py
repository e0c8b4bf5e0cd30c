"""A graph divided among ranks: its mapping, its refusals, and an export by two ranks that run what they wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddlesft.errors import UserError
from paddlesft.export import tensor_parallel
from paddlesft.export.check import CheckReport, GraphDiffers, PromptResult
from paddlesft.export.tensor_parallel import rank_mapping, refuse_faults_of_any
from paddlesft.models.load import load_config
from paddlesft.parallel.tensor_ranks import refuse_indivisible
from tests.parallel.ranks import REPO, launch_well


def test_mapping_names_the_ring_of_the_programs() -> None:
    assert rank_mapping(14, 2) == "[ring_id -> ranks]\n0,0,1\n14,0,1\n[rank -> ring_ids]\n0,0,14\n1,0,14\n"


def test_heads_that_ranks_cannot_share_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=r"key/value heads cannot be shared evenly among 3 ranks\. Start a number"):
        refuse_indivisible(load_config(tiny_llama), 3, "export the whole model")


@pytest.mark.parametrize(("fault", "said"), [("prompt X", "  - prompt X"), ("", "programs of 1 other ranks do not")])
def test_a_fault_of_one_rank_ends_all(fault: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel, "_sum_over_ranks", lambda own: own or 1)
    with pytest.raises(GraphDiffers, match=said):
        refuse_faults_of_any(CheckReport([PromptResult("X", 3, 4, 4, 0, 0.0, fault)], 1.0, 1.0))


def test_two_ranks_export_and_run_their_programs(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "graph"
    launch_well(
        2, REPO / "llm" / "export_model.py", "--model_name_or_path", tiny_llama, "--output_path", output,
        "--check_tokens", 4, logs=tmp_path / "logs",
    )  # fmt: skip
    record = json.loads((output / "graph.json").read_text())
    assert record["ranks"] == 2
    mapping = (output / "rank_mapping.csv").read_text()
    for rank in range(2):
        program = (output / f"rank_{rank}" / "model.json").read_text()
        assert "mp_allreduce_sum" in program and "all_gather" in program
        assert f"\n{rank},0," in mapping
    checked = json.loads((output / "paddlesft.json").read_text())["checked"]
    assert checked["equal_tokens"] + checked["ties"] == checked["prompts"] * 4
