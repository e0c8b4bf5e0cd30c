"""``paddlesft layout``: problems, the table of ranks, memory and traffic, in under a second and without paddle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.cli.main import run_verb

MODEL = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 96}  # fmt: skip
CONFIG = """\
model_name_or_path: model
output_dir: out
dataset_name_or_path: data
tensor_parallel_degree: 2
pipeline_parallel_degree: 2
sharding: stage1
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
"""


@pytest.fixture()
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    (tmp_path / "sft.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "170")
    return tmp_path


@pytest.fixture()
def said(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: str) -> tuple[int, str, str]:
        status = run_verb("layout", argv)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


Said = Callable[..., tuple[int, str, str]]


def test_a_layout_is_shown_with_its_ranks_memory_and_traffic(said: Said) -> None:
    status, out, err = said("sft.yaml", "--world_size", "8")
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == (
        "tensor_parallel_degree 2, pipeline_parallel_degree 2, sharding stage1, sharding_parallel_degree 2 "
        "(8 processes, family llama)"
    )
    assert (
        "global batch: 16 rows (derived: per_device_train_batch_size 2 * gradient_accumulation_steps 4 * 2 data ranks)"
    ) in lines
    assert "sharding_parallel_degree: 2 (derived: 8 processes / 4 that hold one model)" in lines
    assert (
        "0 pipeline 0, sharding 0, tensor 0 embedding, 0-1 query 0-1, key/value 0 0-47 optimizer state: part 0 of 2 "
        "0-1, 4-5, 8-9, ..."
    ) in lines
    assert any(line.startswith("memory of a card in GB (computed, not measured") for line in lines)
    assert any(re.match(r"pipeline 0\.\d\d inside a node activations where", line) for line in lines)


def test_as_few_cards_are_taken_as_the_degrees_fit(said: Said) -> None:
    status, out, err = said("sft.yaml", "bf16=true")
    assert (status, err) == (0, "")  # that a machine without GPUs computes in float32 is about another machine
    assert "(8 processes, family llama)" in out


def test_links_between_nodes_are_told_from_those_inside(said: Said) -> None:
    _, out, _ = said("sft.yaml", "--world_size", "8", "--cards_per_node", "4")
    links = {line.split()[0]: " ".join(line.split()[2:4]) for line in out.splitlines()[-3:]}
    assert links == {"sharding": "inside a", "tensor": "inside a", "pipeline": "between nodes"}


def test_many_ranks_are_cut_unless_all_are_asked_for(said: Said) -> None:
    _, out, _ = said("sft.yaml", "--world_size", "32")
    assert "... and 16 more: --all_ranks" in out
    _, out, _ = said("sft.yaml", "--world_size", "32", "--all_ranks")
    assert "more: --all_ranks" not in out
    assert "  31  " in out


def test_json_holds_the_same_facts(said: Said) -> None:
    _, out, _ = said("sft.yaml", "--world_size", "8", "--json")
    facts = json.loads(out)
    assert (facts["world_size"], facts["global_batch"], len(facts["ranks"])) == (8, 16, 8)
    assert [row["axis"] for row in facts["traffic"]] == ["sharding", "tensor", "pipeline"]
    assert [row["stage"] for row in facts["memory"]] == [0, 1]


def test_a_global_batch_decides_the_accumulation(said: Said) -> None:
    _, out, _ = said("sft.yaml", "--world_size", "8", "--global_batch_size", "32")
    assert "gradient_accumulation_steps: 8  (derived: the global batch asked for" in out


def test_all_problems_are_errors_with_the_nearest_layouts(said: Said) -> None:
    status, out, err = said("sft.yaml", "--world_size", "16", "tensor_parallel_degree=4", "sharding=stage2")
    assert (status, out) == (2, "")
    assert "paddlesft layout: 2 problems in the parallel layout for 16 processes:" in err
    assert "command line: tensor_parallel_degree: found 4, which does not divide the model's 2 key/value heads" in err
    assert "command line and sft.yaml:5: sharding: found stage2 with pipeline_parallel_degree 2" in err
    assert "  1. tensor_parallel_degree 2, pipeline_parallel_degree 2, sharding stage1" in err


def test_wrong_keys_and_values_are_still_refused(said: Said) -> None:
    status, _, err = said("sft.yaml", "--world_size", "8", "tensor_paralel_degree=4")
    assert status == 2
    assert "unknown key 'tensor_paralel_degree'. Did you mean 'tensor_parallel_degree'?" in err
    _, _, err = said("sft.yaml", "--world_size", "8", "to_static=true")
    assert "training in static graph mode is not built yet" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["sft.yaml", "tensor_parallel_degree=1", "pipeline_parallel_degree=1", "sharding="],
            "--world_size is missing: the config divides nothing, so say how many cards it has.",
        ),
        (["sft.yaml", "--world_size", "0"], "--world_size: found 0; allowed: a whole number of 1 or more."),
        (
            ["sft.yaml", "--world_size", "2", "--cards_per_node", "0"],
            "--cards_per_node: found 0; allowed: a whole number of 1 or more.",
        ),
        (
            ["sft.yaml", "--world_size", "4", "model_name_or_path=org/name"],
            "model_name_or_path: org/name is no directory on this machine, and it is not downloaded for a look at its "
            "layout. Give its config.json: --model_config PATH.",
        ),
    ],
)
def test_what_is_missing_is_said(argv: list[str], message: str, said: Said) -> None:
    assert said(*argv)[::2] == (2, f"paddlesft layout: {message}\n")


def test_the_config_of_a_model_that_is_elsewhere_can_be_given(said: Said) -> None:
    status, _, _ = said("sft.yaml", "--world_size", "8", "model_name_or_path=org/name", "--model_config", "model")
    assert status == 0


def test_axes_that_a_run_does_not_have_are_refused_as_train_refuses_them(place: Path, said: Said) -> None:
    status, _, err = said("sft.yaml", "--world_size", "8", "sep_parallel_degree=2")
    assert status == 2 and "sep and context parallelism is not built yet in this version" in err
    assert run_verb("train", ["sft.yaml", "sep_parallel_degree=2"]) == 2


def test_a_layout_is_shown_in_under_a_second_and_without_paddle(place: Path) -> None:
    code = (
        "import sys; from paddlesft.cli.main import main; status = main(sys.argv[1:]);"
        "assert not {'paddle', 'paddlenlp', 'numpy'} & set(sys.modules); sys.exit(status)"
    )
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, "layout", "sft.yaml", "--world_size", "64"], check=True, capture_output=True
        )
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1.5  # 0.4 s on an idle machine
