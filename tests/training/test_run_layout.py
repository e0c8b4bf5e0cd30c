"""The layout of a run is checked by what was started, and what follows is written into the config."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.config import RunConfig, load_run_config
from paddlesft.errors import ConfigError
from paddlesft.training.events import Observer
from paddlesft.training.run_layout import run_layout


class Notes(Observer):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def config(model: Path, *keys: str) -> RunConfig:
    return load_run_config(None, [f"model_name_or_path={model}", "output_dir=o", "dataset_name_or_path=d", *keys])


def test_one_process_shares_nothing(tiny_llama: Path) -> None:
    run = config(tiny_llama, "sharding=stage1", "gradient_accumulation_steps=3")
    layout = run_layout(run, Observer())
    assert (layout.world_size, layout.accumulation, run.training.sharding) == (1, 3, "")
    assert str(run.origins["sharding"]) == 'derived: one process has nothing to share (was "stage1", command line)'


def test_degrees_without_processes_say_how_to_start_them(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_layout(config(tiny_llama, "tensor_parallel_degree=2", "sequence_parallel=true"), Observer())
    lines = str(caught.value).splitlines()
    assert lines[0] == "1 problem in the parallel layout for 1 process:"
    assert "but this run is one process" in lines[1] and "paddlesft train --nproc 2 CONFIG" in lines[1]


def test_several_processes_get_their_layout(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "4")
    observer = Notes()
    run = config(tiny_llama, "pipeline_parallel_degree=2", "sharding=stage1", "gradient_accumulation_steps=2")
    layout = run_layout(run, observer)
    assert (layout.pipeline, layout.sharding, layout.stage) == (2, 2, 1)
    assert run.training.sharding_parallel_degree == 2 and run.data.pad_to_max_length
    assert any(text.startswith("the stages wait for each other 33% of the time") for text in observer.messages)


def test_a_stage_that_nobody_is_left_to_share_is_taken_away(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    run = config(tiny_llama, "tensor_parallel_degree=2", "sharding=stage2")
    assert run_layout(run, Observer()).stage == 0
    assert run.training.sharding == ""
