"""Rows to calibrate and to measure on: from the right files, drawn at random, apart from each other, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.errors import DataError
from paddlesft.quantization.calibration import Rows, read_rows
from paddlesft.training.run_renderer import read_renderer
from tests.quantization.rows import quantization_config, write_rows

PROMPTS = [[5, 6, 7], [8, 9]]


def read(
    model: Path, data: Path | None, *overrides: str, batches: int = 4, calibrates: bool = True
) -> tuple[Rows, list[str], Any]:
    if data is None:
        overrides = (*overrides, "quant_type=weight_only_int8")
    config = quantization_config(model, Path("out"), *overrides, data=data)
    said: list[str] = []
    renderer = read_renderer(config, said.append).renderer
    return read_rows(config, renderer, batches, calibrates, PROMPTS, said.append), said, renderer


def numbers(batches: Any, renderer: Any) -> list[int]:
    """The numbers of the answers in batches or rows."""
    rows = [ids for batch in batches for ids in np.atleast_2d(batch["input_ids"])]
    texts = [renderer.encoder.tokenizer.decode(row.tolist()) for row in rows]
    return [int(text.partition("Answer ")[2].partition(":")[0]) for text in texts]


def held_numbers(rows: Rows, renderer: Any) -> list[int]:
    return numbers([rows.held_out[i] for i in range(len(rows.held_out))], renderer)


def test_quant_json_calibrates_and_evaluation_rows_measure(tiny_llama: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "quant.json", 20, start=100, words=40)
    write_rows(tmp_path / "train.json", 20)
    write_rows(tmp_path / "dev.json", 70, start=200)
    rows, said, renderer = read(tiny_llama, tmp_path)
    seen = numbers(rows.calibration.batches, renderer)
    assert len(set(seen)) == 8 and set(seen) <= set(range(100, 120)) and seen != sorted(seen)
    assert [batch["input_ids"].shape[0] for batch in rows.calibration.batches] == [2] * 4
    assert rows.calibration.tokens == sum(int(batch["attention_mask"].sum()) for batch in rows.calibration.batches)
    assert rows.calibration.padded == sum(batch["input_ids"].size for batch in rows.calibration.batches)
    assert [Path(file).name for file in (*rows.calibration.files, *rows.held_out_files)] == ["quant.json", "dev.json"]
    held = held_numbers(rows, renderer)
    assert len(held) == 64 and set(held) <= set(range(200, 270))
    assert not [text for text in said if "evaluation" in text]


def test_rows_are_rendered_as_training_renders_them(tiny_llama: Path, tmp_path: Path) -> None:
    from paddlesft.data.dataset import build_dataset

    data = write_rows(tmp_path / "train.json", 3)
    rows, _, renderer = read(tiny_llama, data, "max_eval_samples=1", batches=1)
    config = quantization_config(tiny_llama, Path("out"), data=data)
    trained = build_dataset(config.data, renderer, "train")[0]
    wanted = {tuple(trained[i]["input_ids"]) for i in range(3)}
    for ids, mask in zip(rows.calibration.batches[0]["input_ids"], rows.calibration.batches[0]["attention_mask"]):
        assert tuple(ids[mask == 1].tolist()) in wanted


def test_rows_of_one_file_are_shared_out(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.json", 12)
    rows, said, renderer = read(tiny_llama, data)
    seen, held = numbers(rows.calibration.batches, renderer), held_numbers(rows, renderer)
    assert len(seen) == 8 and len(held) == 3 and not set(seen) & set(held)
    assert any(
        text.startswith("There are no evaluation rows: quality is measured on 3 training rows that calibration does")
        and text.endswith("Set eval_dataset_path for an honest figure.")
        for text in said
    )


def test_quant_json_with_training_rows_alone(tiny_llama: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "quant.json", 8, start=100)
    write_rows(tmp_path / "train.json", 5)
    rows, _, renderer = read(tiny_llama, tmp_path)
    assert sorted(numbers(rows.calibration.batches, renderer)) == list(range(100, 108))
    assert sorted(held_numbers(rows, renderer)) == list(range(5))


def test_test_rows_measure_where_there_are_no_evaluation_rows(tiny_llama: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.json", 8)
    write_rows(tmp_path / "test.json", 6, start=50)
    rows, _, renderer = read(tiny_llama, tmp_path, "max_eval_samples=4")
    assert set(held_numbers(rows, renderer)) <= set(range(50, 56)) and len(rows.held_out) == 4
    assert rows.calibration.rows == 8


def test_rows_set_aside_for_evaluation_are_not_calibrated_on(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.json", 20)
    rows, _, renderer = read(tiny_llama, data, "eval_split_ratio=0.25", batches=10)
    seen, held = numbers(rows.calibration.batches, renderer), held_numbers(rows, renderer)
    assert sorted(seen + held) == list(range(20)) and len(held) == 5


def test_what_does_not_calibrate_reads_one_batch(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.json", 20)
    rows, said, _ = read(tiny_llama, data, "quant_type=wint8", calibrates=False)
    assert len(rows.calibration.batches) == 1 and not [text for text in said if text.startswith("calibration")]


def test_without_data_the_prompts_stand_in(tiny_llama: Path) -> None:
    rows, said, _ = read(tiny_llama, None, calibrates=False)
    assert [batch["input_ids"].tolist() for batch in rows.calibration.batches] == [[[5, 6, 7]], [[8, 9]]]
    assert rows.held_out is None and rows.calibration.files == [] and said == []


def test_the_fingerprint_is_that_of_rows_and_batches(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.json", 20)
    changes = ((), (), ("seed=7",), ("per_device_train_batch_size=4",), ("max_length=40",))
    found = [read(tiny_llama, data, *change)[0].calibration.fingerprint for change in changes]
    assert found[0] == found[1] and len(set(found)) == 4


def test_rows_that_say_little_are_told(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.json", 5)
    _, said, _ = read(tiny_llama, data, "src_length=4", "max_length=12")
    assert any(
        text == "calibration: found 3 rows; 8 are wanted (4 batches of 2). More rows make scales more reliable."
        for text in said
    )
    assert any("tokens in all, which is little to learn ranges from. Give more or longer rows" in text for text in said)
    assert any("calibration: 3 of 3 rows are shorter than 16 tokens" in text for text in said)


def test_one_row_is_told_in_the_singular(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.json", 1)
    _, said, _ = read(tiny_llama, data, "src_length=4", "max_length=12", batches=1)
    assert "calibration: found 1 row; 2 are wanted (1 batch of 2). More rows make scales more reliable." in said
    assert any(text.startswith("calibration: 1 of 1 row is shorter than 16 tokens") for text in said)


def test_bad_rows_are_errors(tiny_llama: Path, tmp_path: Path) -> None:
    bad = tmp_path / "train.json"
    bad.write_text('{"src": "a", "tgt": "b"}\n{"src": "a"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.json:2"):
        read(tiny_llama, bad)
    long = write_rows(tmp_path / "long.json", 4, words=80)
    with pytest.raises(DataError, match="dropped because they are longer than max_length=64"):
        read(tiny_llama, long, "truncation=drop")


def test_dropped_rows_are_made_up_for(tiny_llama: Path, tmp_path: Path) -> None:
    long = write_rows(tmp_path / "long.json", 10, words=80).read_text(encoding="utf-8")
    short = write_rows(tmp_path / "train.json", 12, start=50, words=5).read_text(encoding="utf-8")
    (tmp_path / "train.json").write_text(long + short, encoding="utf-8")
    rows, _, renderer = read(tiny_llama, tmp_path / "train.json", "truncation=drop", batches=3)
    seen = numbers(rows.calibration.batches, renderer)
    assert len(seen) == 6 and min(seen) >= 50
