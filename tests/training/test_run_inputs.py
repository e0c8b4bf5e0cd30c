"""What a run reads; here: how long its rows may be where positions end, and templates that it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.config import RunConfig, load_run_config
from paddlesft.errors import ConfigError
from paddlesft.training.events import Observer
from paddlesft.training.run_inputs import read_inputs


@pytest.fixture
def read(tiny_family: Callable[[str], Path], tmp_path: Path) -> Callable[..., RunConfig]:
    """Read the inputs of a run of a family's tiny model, which has 512 positions; returns the config after that."""
    data = tmp_path / "rows.json"
    data.write_text(json.dumps({"src": "add 2 and 2", "tgt": "4 " * 700}), encoding="utf-8")

    def read(family: str, *keys: str) -> RunConfig:
        places = [f"model_name_or_path={tiny_family(family)}", f"train_dataset_path={data}", f"output_dir={tmp_path}"]
        config = load_run_config(None, ["do_train=true", *places, *keys])
        inputs = read_inputs(config, Observer())
        assert len(inputs.datasets["train"][0]["input_ids"]) < config.data.max_length
        return config

    return read


@pytest.mark.parametrize("family", ["gpt", "opt", "chatglm_v2"])
def test_the_default_length_ends_with_the_positions(family: str, read: Callable[..., RunConfig]) -> None:
    config = read(family)
    assert config.data.max_length == 512 and config.data.src_length == 256
    assert "the positions that the model has" in str(config.origins["max_length"])


def test_longer_rows_than_positions_are_refused(read: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"max_length: found 600, but this model knows 512 .* 512 or less"):
        read("gpt", "max_length=600")
    with pytest.raises(ConfigError, match=r"src_length: found 700, but this model knows 512 .* 511 or less"):
        read("gpt", "src_length=700")
    assert read("gpt", "max_length=300").data.max_length == 300


def test_other_families_are_left_alone(read: Callable[..., RunConfig]) -> None:
    assert read("bloom").data.max_length == 2048


def test_a_template_that_the_model_cannot_read_is_refused(read: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"chat_template: prompts of 'plain' do not end in \[gMASK\]"):
        read("glm", "chat_template=plain")
