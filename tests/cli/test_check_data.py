"""``paddlesft check-data`` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from paddlesft.cli.check_data import _configuration, is_training_config
from paddlesft.config import load_run_config

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(
        '{"question": "What is 2+2?", "answer": "4, I think."}\n{"question": "And 3+3?", "answer": "6."}\n', "utf-8"
    )
    return path


def test_report_and_marked_samples(run_here: Run, rows: Path, smollm2: Path) -> None:
    done = run_here("check-data", rows, "--model_name_or_path", smollm2, "max_length=64")
    assert done.returncode == 0, done.stderr
    for part in ("columns (recognised)", "the tokenizer's own", "trained tokens", "0 rows cut, 0 dropped",
                 "row 1: 6 of", "⟦4, I think.<|im_end|>⟧", "⟦6.<|im_end|>⟧"):  # fmt: skip
        assert part in done.stdout, part


def test_without_a_model_the_rows_are_checked(run_cli: Run, rows: Path) -> None:
    done = run_cli("check-data", rows.parent)
    assert done.returncode == 0, done.stderr
    assert "train data: 2 rows, all usable; format columns" in done.stdout
    assert "name a model: --model_name_or_path DIR" in done.stdout


def test_bad_rows_exit_with_2_and_no_traceback(run_cli: Run, rows: Path) -> None:
    with open(rows, "a", encoding="utf-8") as stream:
        stream.write('{"question": "q", "answer": ""}\nnot json\n')
    done = run_cli("check-data", rows)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "paddlesft check-data: 2 rows of 4 cannot be used:" in done.stderr
    assert f"{rows}:3  field 'answer': found an empty string; allowed: a string that is not empty" in done.stderr
    assert f"{rows}:4  found text that is not JSON" in done.stderr


def test_a_training_config_names_the_data(run_here: Run, rows: Path, smollm2: Path, tmp_path: Path) -> None:
    config = tmp_path / "lora.json"
    told = {"model_name_or_path": str(smollm2), "dataset_name_or_path": str(rows.parent), "output_dir": "out"}
    config.write_text(json.dumps({**told, "lora": True, "do_train": True, "eval_split_ratio": 0.5}))
    done = run_here("check-data", config, "chat_template=chatml")
    assert done.returncode == 0, done.stderr
    assert "train data" in done.stdout and "eval data" in done.stdout and "chatml" in done.stdout
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(run_cli: Run, tmp_path: Path) -> None:
    done = run_cli("check-data", tmp_path / "no.jsonl")
    assert (done.returncode, "no.jsonl does not exist" in done.stderr) == (2, True)
    done = run_cli("check-data", "max_length=3")
    assert (done.returncode, "put it first" in done.stderr) == (2, True)
    done = run_cli("check-data", "--help")
    assert (done.returncode, "usage: paddlesft check-data PATH" in done.stdout) == (0, True)


def test_configs_and_data_files_are_told_apart(tmp_path: Path) -> None:
    for name, text, expected in [
        ("a.yaml", "", True),
        ("a.json", '{"model_name_or_path": "x"}', True),
        ("b.json", '{"src": "q", "tgt": "a"}', False),
        ("c.json", '[{"src": "q"}]', False),
        ("d.json", '{"src": "q"}\n{"src": "q"}', False),
        ("e.jsonl", "", False),
    ]:
        path = tmp_path / name
        path.write_text(text)
        assert is_training_config(path) == expected, name


DOCUMENTED_ROWS = [
    {"messages": [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4."},
                  {"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "6."}], "label": [0, 1]},
    {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]},
    {"messages": [{"role": "system", "content": "You rhyme."}, {"role": "user", "content": "Say hello."},
                  {"role": "assistant", "content": "Hello, yellow fellow."}]},
]  # fmt: skip


def test_the_output_shown_in_the_documentation_is_real(run_cli: Run, smollm2: Path, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    shown = page.partition("```text\n")[2].partition("```")[0]
    (tmp_path / "data").mkdir()
    lines = [json.dumps(row) for row in DOCUMENTED_ROWS]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = run_cli("check-data", "data", "--model_name_or_path", smollm2, cwd=tmp_path, COLUMNS="100")
    assert done.returncode == 0, done.stderr
    for line in shown.splitlines():
        assert "fingerprint" in line or line in done.stdout, line


def test_lengths_are_those_that_training_takes(rows: Path) -> None:
    for overrides, src_length in (([], 1024), (["max_length=100"], 50), (["max_length=100", "src_length=20"], 20)):
        checked = _configuration([str(rows), *overrides])
        run = load_run_config(None, [f"train_dataset_path={rows}", *overrides, "model_name_or_path=m", "output_dir=o"])
        assert checked.data.src_length == run.data.src_length == src_length


@pytest.mark.parametrize("family", ["gpt", "chatglm_v2"])
def test_rows_are_cut_where_training_cuts_them(
    family: str, run_here: Run, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"src": "Why?", "tgt": "yes " * 900}), encoding="utf-8")
    done = run_here("check-data", path, "--model_name_or_path", tiny_family(family))
    assert done.returncode == 0 and "512 (longest 512, median 512)" in done.stdout, done.stdout + done.stderr
    done = run_here("check-data", path, "--model_name_or_path", tiny_family(family), "max_length=600")
    assert done.returncode == 2 and "max_length: found 600, but this model knows 512 positions" in done.stderr


def test_fields_that_are_not_read_are_said_without_a_model_too(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a", "sytem": "s"}\n', "utf-8")
    done = run_cli("check-data", path)
    assert (
        "train data: 1 row, all usable; format columns\nnote: Fields that are not read: 'sytem' (1 row)." in done.stdout
    )


def test_a_model_that_takes_one_reply_a_row(run_here: Run, tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    texts = [("user", "What is it?"), ("assistant", "the capital"), ("user", "of what?"), ("assistant", "France")]
    path.write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in texts]}), encoding="utf-8")
    done = run_here("check-data", path, "--model_name_or_path", tiny_family("glm"))
    assert done.returncode == 0, done.stderr
    for part in ("1 conversation into one sequence for each reply", "⟦the capital<|endofpiece|>⟧",
                 "⟦France<|endofpiece|>⟧", "[gMASK]"):  # fmt: skip
        assert part in done.stdout, part


def test_what_training_would_refuse_is_refused(run_here: Run, tiny_family: Callable[[str], Path], rows: Path) -> None:
    done = run_here("check-data", rows, "--model_name_or_path", tiny_family("chatglm"), "--chat_template", "qwen")
    assert done.returncode == 2 and "chat_template: prompts of 'qwen' do not end in [gMASK]<sop>" in done.stderr
    done = run_here(
        "check-data",
        rows,
        "--model_name_or_path",
        tiny_family("llama"),
        "--tokenizer_name_or_path",
        tiny_family("qwen2"),
    )
    assert done.returncode == 2 and "but the model in" in done.stderr
