"""``paddlesft rehearse``: PASS, FAIL, what it shows, and what it refuses before anything runs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.cli import rehearse
from paddlesft.training import rehearsal_runs
from paddlesft.training.rehearsal_runs import Compared, Outcome

REPO = Path(__file__).resolve().parents[2]
SFT = REPO / "configs/llama/sft.yaml"
LLAMA_2_7B = {  # as its Hugging Face directory has it
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture()
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the model's config.json and one for what rehearsals write."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_7B), encoding="utf-8")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path


def faulty(fault: str) -> list[str]:
    return [sys.executable, str(REPO / "tests/parallel/programs/faulty_training.py"), fault]


# ---- real runs ----


@pytest.mark.slow
def test_a_production_config_of_eight_cards_passes(place: Path, run_cli: Run) -> None:
    keys = ("tensor_parallel_degree=4", "pipeline_parallel_degree=2")
    done = run_cli(
        "rehearse", SFT, "--world_size", 8, "--max_processes", 4, "--model_config", place / "config.json", *keys,
        cwd=place, TMPDIR=str(place / "tmp"), OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^PASS: largest difference \d\.\de-0[5-9], allowed 0\.0001$", done.stdout, re.MULTILINE)
    for kind, count in (("train loss", 6), ("gradient norm", 6), ("evaluation loss", 2),
                        ("train loss, resumed", 3), ("evaluation loss, resumed", 1)):  # fmt: skip
        found = re.findall(rf"^\d +{kind} +\d+\.\d+ +\d+\.\d+ +\d\.\de[-+]\d+", done.stdout, re.MULTILINE)
        assert len(found) == count, done.stdout
    assert "rehearsed: tensor_parallel_degree 2, pipeline_parallel_degree 2 (4 CPU processes)" in done.stdout
    assert not list((place / "tmp").glob("paddlesft-rehearsal-*"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["gradient", "factor"])
def test_wrong_gradients_fail(fault: str, place: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "PROGRAM", faulty(fault))
    keys = ("--model_config", place / "config.json", "tensor_parallel_degree=2", "--no_resume", "--steps", 2)
    done = run_here("rehearse", SFT, "--json", *keys)
    assert done.returncode == 1, done.stderr
    facts = json.loads(done.stdout)
    assert not facts["passed"]
    what = "train loss of step 2" if fault == "gradient" else "gradient norm of step 1"
    assert facts["reason"].startswith(f"{what} differs by ")
    first = facts["losses"][0]
    assert first["what"] == "train loss" and first["difference"] < 1e-5  # the forward pass is right
    kept = Path(facts["directory"])
    assert {"model", "data", "one.json", "ranks.json", "logs-ranks", "run-one", "run-ranks"} <= {
        p.name for p in kept.iterdir()
    }
    assert (kept / "logs-ranks/workerlog.1").is_file()


@pytest.mark.slow
def test_a_rank_that_dies_fails_with_its_own_error(place: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "PROGRAM", faulty("rank"))
    done = run_here("rehearse", SFT, "--model_config", place / "config.json", "tensor_parallel_degree=2")
    assert done.returncode == 1
    said = "FAIL: the run of 2 ranks failed: rank 1 failed first: RuntimeError: the card fell off the bus\n"
    assert said in done.stdout
    assert re.search(r"^log: \S+/logs-ranks/workerlog\.1$", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stdout + done.stderr


def test_the_page_shows_a_real_rehearsal_of_a_shipped_config() -> None:
    page = (REPO / "docs/parallel.md").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("write_rehearsal", REPO / "tools/write_rehearsal.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    output = page.split(tool.BEGIN)[1].split(tool.END)[0].strip()
    assert output.splitlines()[1] == f"$ paddlesft rehearse {tool.CONFIG} {' '.join(tool.ARGUMENTS)}"
    assert re.search(r"^PASS: largest difference \d\.\de-0[5-9], allowed 0\.0001$", output, re.MULTILINE)
    assert (REPO / tool.CONFIG).is_file()
    assert tool.with_output(page, output) == page
    with pytest.raises(ValueError, match=r"docs/parallel\.md has no place for the rehearsal"):
        tool.with_output("nothing", output)


# ---- what is shown, without running ----


@pytest.fixture()
def outcome(monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What the runs come to; tests change it."""
    rows = [Compared(1, "train loss", 5.5, 5.50001), Compared(1, "gradient norm", 1.0, 1.2)]
    result = Outcome(True, "", rows, {"one": 5.0, "ranks": 9.0}, {"one": [Path("one.log")], "ranks": [Path("w.0")]})
    monkeypatch.setattr(rehearsal_runs, "run_rehearsal", lambda *_: result)
    return result


def test_a_large_layout_is_shrunk_and_everything_is_said(place: Path, run_here: Run, outcome: Outcome) -> None:
    done = run_here(
        "rehearse", SFT, "--world_size", 64, "--max_processes", 4, "--model_config", place / "config.json",
        "tensor_parallel_degree=8", "sharding=stage1", "gradient_accumulation_steps=16", COLUMNS="160",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in (
        "the run: tensor_parallel_degree 8, sharding stage1, sharding_parallel_degree 8 (64 processes, family llama)",
        "rehearsed: tensor_parallel_degree 2, sharding stage1, sharding_parallel_degree 2 (4 CPU processes)",
        "sharding_parallel_degree: 8 -> 2",
        "tensor_parallel_degree: 8 -> 2",
        "gradient_accumulation_steps: 16 -> 4",
        "max_length: 2048 -> 128",
        "rows of random token ids: the tokenizer is not on this machine",
        "1 train loss 5.500000 5.500010 1.0e-05",
        "1 gradient norm <= 1 1.200000 1.7e-01",
    ):
        assert line in lines, done.stdout
    assert any(line.startswith("not rehearsed: ") and "NCCL" in line for line in lines)
    assert any(line.startswith("3 sharding 1, tensor 1 embedding, 0-1, norm, head query 2-3 128-255") for line in lines)
    assert re.search(r"^\d+ s in all \(one process 5 s, 4 ranks 9 s\)$", done.stdout, re.MULTILINE)
    assert not list((place / "tmp").iterdir())


def test_a_pass_is_kept_on_request_and_a_fail_always(place: Path, run_here: Run, outcome: Outcome) -> None:
    arguments = ("rehearse", SFT, "--model_config", place / "config.json", "tensor_parallel_degree=2")
    done = run_here(*arguments, "--keep")
    assert (kept := re.search(r"^configs, logs and results: (.+)$", done.stdout, re.MULTILINE))
    assert json.loads(Path(kept[1], "ranks.json").read_text(encoding="utf-8"))["tensor_parallel_degree"] == 2
    outcome.passed, outcome.reason, outcome.rows = False, "the run of one process failed: no room", []
    done = run_here(*arguments)
    assert done.returncode == 1
    assert "FAIL: the run of one process failed: no room" in done.stdout and "log: w.0" in done.stdout
    assert len(list((place / "tmp").glob("paddlesft-rehearsal-*"))) == 2


def test_an_interrupted_rehearsal_leaves_nothing(place: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(rehearsal_runs, "run_rehearsal", interrupt)
    done = run_here("rehearse", SFT, "--model_config", place / "config.json", "tensor_parallel_degree=2")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "paddlesft rehearse: interrupted")
    assert not list((place / "tmp").iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "1"], "--steps: found 1; allowed: a whole number of 2 or more."),
        (["--world_size", "0"], "--world_size: found 0; allowed: a whole number of 1 or more."),
        (["--max_processes", "0"], "--max_processes: found 0; allowed: a whole number of 1 or more."),
        (["--tolerance", "0"], "--tolerance: found 0; allowed: a number above 0, such as 1e-4."),
        (["--world_size", "2", "--model_config", "none.json"], "none.json does not exist."),
        (["tensor_parallel_degree=2"], "meta-llama/Llama-2-7b-hf is no directory on this machine"),
        (["tensor_paralel_degree=2"], "Did you mean 'tensor_parallel_degree'?"),
        (["--model_config", "config.json"], "There is nothing to rehearse: the config divides nothing"),
        (
            ["--model_config", "config.json", "--world_size", "64", "tensor_parallel_degree=8",
             "pipeline_parallel_degree=4", "--max_processes", "3"],
            "This layout takes 4 processes",
        ),
        (
            ["--model_config", "config.json", "--world_size", "6", "tensor_parallel_degree=3", "sharding=stage3"],
            " problems in the parallel layout for 6 processes:",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_runs(argv: list[str], message: str, place: Path, run_here: Run) -> None:
    done = run_here("rehearse", SFT, *argv, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not list((place / "tmp").iterdir())


@pytest.mark.parametrize(("memory", "ranks"), [(0, 8), (64e9, 8), (4e9, 5), (1e9, 2)])
def test_as_many_ranks_start_as_memory_allows(memory: float, ranks: int) -> None:
    assert rehearse.processes_that_fit(int(memory)) == ranks
