"""A model's config is read in Paddle's terms without paddle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.paddle_config import read_paddle_config


def write(path: Path, **entries: object) -> Path:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_a_config_in_paddles_layout_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "config.json", model_type="llama", hidden_size=8, paddlenlp_version="3", torch_dtype="float32")
    config, family = read_paddle_config(tmp_path)
    assert (config["hidden_size"], family.name) == (8, "llama")


def test_a_config_of_hugging_face_is_translated(tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", model_type="gpt2", transformers_version="4.57", n_embd=64, n_layer=3,
                 n_head=4, vocab_size=100)  # fmt: skip
    config, family = read_paddle_config(path)
    assert family.name == "gpt"
    assert (config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]) == (64, 3, 256)
    assert family.plan(config).hidden == 64


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"does not exist\. Give a model directory or its config\.json"):
        read_paddle_config(tmp_path / "none")


def test_an_unknown_family_is_refused_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", model_type="t5")
    with pytest.raises(ModelDirectoryError, match=r"config.json names model_type 't5', which no family"):
        read_paddle_config(path)
