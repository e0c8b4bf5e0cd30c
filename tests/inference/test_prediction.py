"""Files of rows to files of replies: order, keys, batches, continuing, and what is counted."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from paddlesft.data.conversation import Conversation
from paddlesft.errors import DataError, UserError
from paddlesft.inference.loading import Loaded, load_for_inference
from paddlesft.inference.prediction import (
    benchmark,
    predict_file,
    read_rows,
    row_of,
    rows_of_prompts,
)
from paddlesft.inference.sampling import SamplingOptions

SAMPLED = SamplingOptions(max_new_tokens=8, decode_strategy="sampling", seed=4)
QUESTIONS = [f"Question {i}" + " and more" * (i * 5 % 7) for i in range(7)]


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> Loaded:
    return load_for_inference(tiny_llama)


@pytest.fixture(scope="module")
def whole(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "o.json"
    predict_file(loaded, rows_of_prompts(QUESTIONS), path, SAMPLED)
    return path.read_bytes()


def test_lines_are_in_order_with_upstreams_keys(whole: bytes) -> None:
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert [list(row) for row in rows] == [["src", "tgt", "output"]] * 7
    assert [row["src"] for row in rows] == QUESTIONS
    assert len({row["output"] for row in rows}) == 7


@pytest.mark.parametrize("batch_size", [3, 50])
def test_the_batch_size_does_not_matter_and_lines_come_before_their_announcement(
    loaded: Loaded, whole: bytes, tmp_path: Path, batch_size: int
) -> None:
    seen = []
    path = tmp_path / "o.json"

    def announced(index: int, row: object, reply: object) -> None:
        seen.append((index, row.src))
        assert len(path.read_text().splitlines()) > index

    report = predict_file(loaded, rows_of_prompts(QUESTIONS), path, SAMPLED, batch_size, on_reply=announced)
    assert path.read_bytes() == whole
    assert seen == list(enumerate(QUESTIONS))
    assert report.throughput.replies == 7
    assert report.throughput.generated_tokens == 56
    assert report.finish_reasons == {"length": 7}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("position", [0, 1, 60, 200, -1])
def test_a_run_cut_off_anywhere_is_continued_to_the_same_file(
    loaded: Loaded, whole: bytes, tmp_path: Path, position: int, batch_size: int
) -> None:
    path = tmp_path / "o.json"
    rows = rows_of_prompts(QUESTIONS)
    predict_file(loaded, rows, path, SAMPLED, batch_size)
    path.write_bytes(whole[:position])
    report = predict_file(loaded, rows, path, SAMPLED, batch_size)
    assert path.read_bytes() == whole
    assert report.kept == whole[:position].count(b"\n")
    assert report.repaired == bool(whole[:position].rpartition(b"\n")[2])
    assert report.throughput.replies == 7 - report.kept


def test_a_complete_file_is_left_alone(loaded: Loaded, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    predict_file(loaded, rows_of_prompts(QUESTIONS), path, SAMPLED)
    report = predict_file(loaded, rows_of_prompts(QUESTIONS), path, SAMPLED)
    assert (report.kept, report.throughput.replies) == (7, 0)
    assert path.read_bytes() == whole


def test_other_rows_or_settings_are_refused(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    predict_file(loaded, rows_of_prompts(QUESTIONS[:2]), path, SAMPLED)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"temperature: then 1.0, now 0.5"):
        predict_file(loaded, rows_of_prompts(QUESTIONS[:2]), path, SAMPLED.replace(temperature=0.5))
    with pytest.raises(UserError, match=r"rows: then 2, now 3\n  input: then 'sha256:"):
        predict_file(loaded, rows_of_prompts(QUESTIONS[:3]), path, SAMPLED)
    assert path.read_bytes() == before
    report = predict_file(loaded, rows_of_prompts(QUESTIONS[:3]), path, SAMPLED, overwrite=True)
    assert (report.kept, len(path.read_text().splitlines())) == (0, 3)


def test_a_random_seed_is_recorded_for_continuing(loaded: Loaded, tmp_path: Path) -> None:
    path, rows, options = tmp_path / "o.json", rows_of_prompts(QUESTIONS[:3]), SAMPLED.replace(seed=None)
    predict_file(loaded, rows, path, options)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    predict_file(loaded, rows, path, options)
    assert path.read_text() == whole
    predict_file(loaded, rows, tmp_path / "other.json", options)
    assert (tmp_path / "other.json").read_text() != whole


def test_the_seed_of_greedy_search_does_not_matter(loaded: Loaded, tmp_path: Path) -> None:
    greedy = SamplingOptions(max_new_tokens=2, seed=1)
    predict_file(loaded, rows_of_prompts(QUESTIONS[:1]), tmp_path / "o.json", greedy)
    report = predict_file(loaded, rows_of_prompts(QUESTIONS[:1]), tmp_path / "o.json", greedy.replace(seed=2))
    assert report.kept == 1


def test_rows_of_every_shape_become_upstreams_keys(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    rows = [
        {"src": "one", "tgt": "eins"},
        {"src": "no reference"},
        {"src": ["first", "second"], "tgt": ["a", "b"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    read = read_rows(path)
    assert [(row.src, row.tgt) for row in read] == [("one", "eins"), ("no reference", ""), (["first", "second"], "b")]
    assert [m.content for m in read[2].prompt.messages] == ["first", "a", "second"]
    assert [row.src for row in read_rows(path, limit=1)] == ["one"]
    called = Conversation.of(
        [{"role": "user", "content": "weather?"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]
    )
    assert row_of(called).tgt == '[{"function": {"name": "f"}}]'


def test_bad_rows_are_listed_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"src": "ok", "tgt": ""}\n{"src": {}}\nnot json\n')
    with pytest.raises(DataError, match=r"(?s)2 rows of 3 cannot be used.*data\.json:2 .*data\.json:3 "):
        read_rows(path)


def test_long_prompts_lose_their_beginning_and_are_counted(
    loaded: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of_prompts(["short", "long " * 300])
    with caplog.at_level(logging.WARNING, logger="paddlesft"):
        report = predict_file(loaded, rows, tmp_path / "o.json", SamplingOptions(max_new_tokens=2), src_length=40)
    assert report.shortened == 1
    assert report.throughput.prompt_tokens < 40 + 40
    assert "1 prompt had more than 40 tokens; the beginning was left out." in caplog.text
    assert report.context_full == 0
    # the context of this model is 512: half of it is kept for the reply
    options = SamplingOptions(max_new_tokens=900, min_new_tokens=900)
    with caplog.at_level(logging.WARNING, logger="paddlesft"):
        report = predict_file(loaded, rows, tmp_path / "p.json", options, batch_size=2, src_length=900)
    assert json.loads((tmp_path / "p.json.settings.json").read_text())["prompt_tokens"] == 256
    assert "1 prompt had more than 256 tokens (the model's context of 512 holds the reply, too)" in caplog.text
    assert (report.context_full, report.finish_reasons["length"]) == (2, 2)


def test_the_benchmark_makes_every_reply_equally_long(loaded: Loaded) -> None:
    measured = benchmark(loaded, rows_of_prompts(QUESTIONS[:2]), SamplingOptions(max_new_tokens=5), warm_up=1, rounds=3)
    assert (measured.replies, measured.generated_tokens) == (6, 30)
    assert measured.prompt_rate > 0 and measured.generated_rate > 0
    assert str(measured).startswith("6 replies in ")
