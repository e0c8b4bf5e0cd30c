"""The growing output file: begun, continued, repaired, and refused when it belongs to another run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from paddlesft.errors import UserError
from paddlesft.inference.output_file import OutputFile

ROWS = [SimpleNamespace(src=f"问题 {i}", tgt="") for i in range(4)]
SETTINGS = {"model": "sha256:1", "top_p": 0.7, "seed": None, "stop": ("x",)}


def lines(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"src": ROWS[i].src, "tgt": "", "output": f"回答 {i}"} for i in range(start, start + count)]


def begin(path: Path, count: int = 2, **settings: object) -> OutputFile:
    with OutputFile(path, {**SETTINGS, **settings}, random_keys=("seed",)) as output:
        output.write(lines(count))
    return output


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "o.json"
    with OutputFile(path, SETTINGS) as output:
        output.write(lines(2))
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == lines(2)
        assert "问题" in path.read_text(encoding="utf-8")


def test_a_run_is_continued_with_its_random_seed(tmp_path: Path) -> None:
    first = begin(tmp_path / "o.json")
    assert first.settings["seed"] is not None
    with OutputFile(tmp_path / "o.json", SETTINGS, random_keys=("seed",)) as again:
        assert again.settings == first.settings
        assert (again.check_lines(ROWS), again.repaired) == (2, False)
        again.write(lines(2, start=2))
    assert again.check_lines(ROWS) == 4


@pytest.mark.parametrize(
    "rest", ['{"src": "问题 2", "tg', '{"src": "问题 2", "tgt": "", "output": "x"}', "\ufeff", "é" * 70000]
)
def test_half_a_line_is_removed(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "o.json"
    begin(path)
    before = path.read_bytes()
    path.write_bytes(before + rest.encode()[:-1] if rest != "\ufeff" else before + rest.encode())
    with OutputFile(path, SETTINGS, random_keys=("seed",)) as output:
        assert output.repaired
        assert output.check_lines(ROWS) == 2
    assert path.read_bytes() == before


def test_a_file_that_is_only_half_a_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    begin(path, count=0)
    path.write_text('{"src": "que')
    with OutputFile(path, SETTINGS, random_keys=("seed",)) as output:
        assert output.repaired and output.check_lines(ROWS) == 0


def test_other_settings_are_refused_and_each_difference_is_named(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    begin(path)
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        OutputFile(path, {"model": "sha256:2", "top_p": 0.7, "seed": 5, "stop": ["x"], "adapter": "sha256:3"})
    text = str(caught.value)
    assert f"Cannot continue {path}: its lines were made by a run with other settings" in text
    assert "model: then 'sha256:1', now 'sha256:2'" in text
    assert "adapter: then None, now 'sha256:3'" in text
    assert "seed: then" in text and "top_p" not in text and "stop" not in text
    assert "Nothing was changed. Choose another output_file, or add --overwrite" in text
    assert path.read_bytes() == before


def test_lines_of_other_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    output = begin(path, count=3)
    with pytest.raises(UserError, match="line 2 answers '问题 1', row 2 of the input is 'another'"):
        output.check_lines([ROWS[0], SimpleNamespace(src="another", tgt=""), ROWS[2]])
    with pytest.raises(UserError, match=r"it has more lines than the input has rows \(2\)"):
        output.check_lines(ROWS[:2])
    path.write_text(path.read_text().replace("问题 1", "x", 1).replace('"output"', '"reply"', 1))
    with pytest.raises(UserError, match="line 1 is not a line of replies"):
        output.check_lines(ROWS)


def test_a_file_without_its_record_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text("mine\n")
    with pytest.raises(UserError, match=r"it exists, but not the record of what made it \(notes.json.settings.json\)"):
        OutputFile(path, SETTINGS)
    (tmp_path / "notes.json.settings.json").write_text("{")
    with pytest.raises(UserError, match=r"notes.json.settings.json beside it is not JSON"):
        OutputFile(path, SETTINGS)
    assert path.read_text() == "mine\n"
    with OutputFile(path, SETTINGS, overwrite=True) as output:
        output.write(lines(1))
    assert output.check_lines(ROWS) == 1


def test_a_directory_is_no_output_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a directory. Give the name of a file"):
        OutputFile(tmp_path, SETTINGS)
