"""Opening a static graph of Paddle: what is missing, torn or of another kind is refused in words."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import paddle
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.export.static_graph import write_static_graph
from paddlesft.inference.paddle_graph import PaddleGraph
from paddlesft.inference.step_model import EagerModel
from paddlesft.models import load_model
from paddlesft.models.graph_directory import read_record, write_record


@pytest.fixture(scope="module")
def written(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EagerModel]:
    directory, model = tmp_path_factory.mktemp("graph"), load_model(tiny_llama)
    record = write_static_graph(model, directory)
    write_record(record, directory)
    return directory, EagerModel(model)


def change_record(directory: Path, **values: Any) -> None:
    path = directory / "graph.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: change_record(d, num_layers=3), "has 8 inputs, not the 10 of a model's step (missing: past_4, past"),
        (lambda d: cut(d / "model.json", 5000), f"written by Paddle {paddle.__version__} cannot be read ("),
        (lambda d: cut(d / "model.pdiparams", 1000), f"); Paddle {paddle.__version__} is installed here. Export"),
        (lambda d: change_record(d, sizes={"model.pdiparams": 7}), "bytes instead of 7: the directory is not complete"),
        (lambda d: change_record(d, sizes={"there.not": 7}), "there.not is missing: the directory is not complete"),
        (lambda d: change_record(d, colour="red"), "graph.json is not what this version writes ("),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(
    spoil: Any, message: str, written: tuple[Path, EagerModel], tmp_path: Path
) -> None:
    directory, model = written
    shutil.copytree(directory, tmp_path / "g")
    spoil(tmp_path / "g")
    with pytest.raises(ModelDirectoryError) as caught:
        PaddleGraph(tmp_path / "g", model.config, model.inputs)
    text = str(caught.value)
    assert message in text and "xport" in text and "\n" not in text, text


def test_another_version_of_paddle_is_said(
    written: tuple[Path, EagerModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, model = written
    shutil.copytree(directory, tmp_path / "g")
    assert read_record(directory).paddle_version == paddle.__version__
    change_record(tmp_path / "g", paddle_version="3.1.1")
    with caplog.at_level(logging.WARNING, logger="paddlesft"):
        PaddleGraph(tmp_path / "g", model.config, model.inputs)
    assert f"written by Paddle 3.1.1; Paddle {paddle.__version__} is installed here" in caplog.text
