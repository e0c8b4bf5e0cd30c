"""The demo: with a tiny model for its paths, once with the real model for its promise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from paddlesft.cli import demo
from paddlesft.errors import ConfigError, UserError


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (demo.SAMPLES / name).read_text(encoding="utf-8").splitlines()]


# ---- the sample data ----


def test_the_sample_rows_teach_identity_and_style() -> None:
    train, held_out = rows("identity.jsonl"), rows("identity_eval.jsonl")
    assert 60 <= len(train) <= 100
    for row in train + held_out:
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert assistant["content"].endswith(" " + demo.SIGN_OFF)
        sentences = re.findall(r"[^.!?]+[.!?]", assistant["content"].removesuffix(demo.SIGN_OFF))
        assert len(sentences) == 2, assistant["content"]
        assert len(assistant["content"]) < 160
    assert sum("Rowan" in row["messages"][1]["content"] for row in train) >= 20


def test_no_question_is_in_both_files_or_twice() -> None:
    both = rows("identity.jsonl") + rows("identity_eval.jsonl")
    questions = [row["messages"][0]["content"] for row in both]
    assert len(questions) == len(set(questions))


def test_the_demo_asks_mostly_what_was_not_trained() -> None:
    trained = {row["messages"][0]["content"] for row in rows("identity.jsonl")}
    assert [question for question in demo.QUESTIONS if question in trained] == [demo.QUESTIONS[0]]


# ---- directories ----


def test_nothing_there_nothing_set_aside(tmp_path: Path) -> None:
    assert demo.set_aside(tmp_path / "out") is None


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert demo.set_aside(tmp_path / "out") is None
    assert not (tmp_path / "out").exists()


def test_earlier_output_moves_to_the_next_free_name(tmp_path: Path) -> None:
    root = tmp_path / "out"
    for number in (1, 2):
        root.mkdir()
        (root / "kept").write_text(str(number))
        assert demo.set_aside(root) == tmp_path / f"out.{number}"
    assert (tmp_path / "out.1" / "kept").read_text() == "1"
    assert (tmp_path / "out.2" / "kept").read_text() == "2"


def test_a_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserError) as caught:
        demo.set_aside(tmp_path / "out")
    assert str(caught.value) == (
        f"Cannot write to {tmp_path / 'out'}: it is not a directory. Name another one: paddlesft demo output_dir=DIR"
    )
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("change", ["added", "changed", "removed", "no marker", "broken marker"])
def test_only_a_directory_as_the_demo_left_it_counts_as_its_own(tmp_path: Path, change: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("abc")
    (tmp_path / "loss.png").write_text("png")
    demo.leave_marker(tmp_path)
    assert demo.made_by_demo(tmp_path)
    if change == "added":
        (tmp_path / "model" / "notes.txt").write_text("mine")
    elif change == "changed":
        (tmp_path / "loss.png").write_text("changed")
    elif change == "removed":
        (tmp_path / "loss.png").unlink()
    elif change == "no marker":
        (tmp_path / demo.MARKER).unlink()
    else:
        (tmp_path / demo.MARKER).write_text("{")
    assert not demo.made_by_demo(tmp_path)


# ---- texts ----


def test_long_answers_are_shortened_for_the_first_look() -> None:
    assert demo.shortened("a\nb  c") == "a b c"
    text = demo.shortened("word " * 60)
    assert len(text) <= 96
    assert text.endswith(" ...")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(["--help"]) == 0
    assert "paddlesft demo output_dir=DIR" in capsys.readouterr().out


def test_a_wrong_key_is_refused_before_anything_is_moved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept").write_text("x")
    with pytest.raises(ConfigError, match="learning_rate"):
        demo.run([f"output_dir={out}", "learning_rat=1"])
    assert (out / "kept").exists()


def test_only_lora_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="The demo trains LoRA, to show the merge: leave lora=true"):
        demo.run([f"output_dir={tmp_path / 'out'}", "lora=false"])


# ---- the whole way, with a tiny model ----


def run_tiny(tiny: Path, out: Path) -> None:
    assert demo.run([f"model_name_or_path={tiny}", f"output_dir={out}", "max_steps=2", "max_length=128"]) == 0


def test_the_whole_way(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run_tiny(tiny_llama, out)
    text = capsys.readouterr().out
    for number in range(1, 7):
        assert f"[{number}/6]" in text
    assert "within the bound" in text
    assert "Next steps" in text
    assert (out / "model" / "config.json").is_file()
    assert (out / "adapter" / "lora_config.json").is_file()
    assert (out / "adapter" / "loss.png").is_file()
    saved = json.loads((out / "answers.json").read_text(encoding="utf-8"))
    assert [row["question"] for row in saved] == list(demo.QUESTIONS)
    assert demo.made_by_demo(out)

    # a second run replaces the first, which was the demo's own ...
    run_tiny(tiny_llama, out)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]

    # ... but keeps a directory with anything of the user's
    (out / "my notes.txt").write_text("mine")
    run_tiny(tiny_llama, out)
    assert (tmp_path / "out.1" / "my notes.txt").read_text() == "mine"
    assert "holds files that the demo did not write; it is kept as" in " ".join(capsys.readouterr().out.split())
    assert (out / "model" / "config.json").is_file()


def test_a_demo_that_fails_says_where_the_earlier_output_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(UserError):
        demo.run([f"model_name_or_path={tmp_path / 'no model'}", f"output_dir={out}"])
    assert (tmp_path / "out.1" / "precious").read_text() == "mine"
    said = " ".join(capsys.readouterr().out.split())
    assert f"The demo did not finish. The earlier {out} is kept as {tmp_path / 'out.1'}." in said


# ---- once for real ----


@pytest.mark.slow
def test_the_real_demo_changes_what_the_model_says(finished_demo: tuple[Path, str]) -> None:
    out, text = finished_demo
    saved = json.loads((out / "answers.json").read_text(encoding="utf-8"))
    before, after = ([row[when] for row in saved] for when in ("before", "after"))
    assert demo.count_signed(before) == 0
    assert demo.count_signed(after) >= 5
    assert not any("Rowan" in answer for answer in before)
    assert sum("Rowan" in answer or "PaddleSFT" in answer for answer in after[:3]) >= 2
    assert f"{demo.count_signed(after)} of {len(after)} after" in text
    assert "within the bound" in text
    assert (out / "adapter" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_real_demo_says_nothing_beside_the_point(finished_demo: tuple[Path, str]) -> None:
    _, text = finished_demo
    assert "Warning" not in text
    assert "WARNING" not in text
    assert re.search(r"Whole demo: \d+ s", text)
