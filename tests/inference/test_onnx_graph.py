"""Opening an ONNX graph: what is missing, torn or of another kind is refused in words."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from paddlesft.errors import EnvironmentProblem, ModelDirectoryError
from paddlesft.export.onnx_graph import write_onnx_graph
from paddlesft.inference.generation import generate
from paddlesft.inference.onnx_graph import OnnxGraph
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.inference.step_model import EagerModel
from paddlesft.models import load_model
from paddlesft.models.graph_directory import write_record


@pytest.fixture(scope="module")
def written(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EagerModel]:
    directory, model = tmp_path_factory.mktemp("graph"), load_model(tiny_llama)
    write_record(write_onnx_graph(model, directory), directory)
    return directory, EagerModel(model)


def change_record(directory: Path, **values: Any) -> None:
    path = directory / "graph.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def rename_output(directory: Path) -> None:
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    model.graph.output[0].name = "scores"
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    onnx.save(model, str(directory / "model.onnx"))


def test_replies_are_those_of_the_model_in_memory(written: tuple[Path, EagerModel]) -> None:
    directory, model = written
    graph = OnnxGraph(directory, model.config, model.inputs)
    prompts = [[11, 12, 13], [900, 5, 77, 402, 8, 1200, 17, 30, 2], [40]]
    for options in (SamplingOptions(max_new_tokens=8), SamplingOptions(max_new_tokens=8, temperature=0.9, seed=3)):
        wanted = generate(model, prompts, options)
        assert [one.token_ids for one in generate(graph, prompts, options)] == [one.token_ids for one in wanted]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: change_record(d, num_layers=3), "has 8 inputs, not the 10 of a model's step (missing: past_4, past"),
        (rename_output, "has 2 outputs, not the 2 of a model's step (missing: logits)"),
        (lambda d: cut(d / "model.onnx", 5000), "model.onnx cannot be read by ONNX Runtime "),
        (lambda d: cut(d / "model.onnx.data", 5000), "model.onnx cannot be read by ONNX Runtime "),
        (lambda d: (d / "model.onnx.data").unlink(), "model.onnx cannot be read by ONNX Runtime "),
        (lambda d: change_record(d, sizes={"model.onnx.data": 7}), "bytes instead of 7: the directory is not complete"),
        (lambda d: change_record(d, sizes={"there.not": 7}), "there.not is missing: the directory is not complete"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(
    spoil: Any, message: str, written: tuple[Path, EagerModel], tmp_path: Path
) -> None:
    directory, model = written
    shutil.copytree(directory, tmp_path / "g")
    spoil(tmp_path / "g")
    with pytest.raises(ModelDirectoryError) as caught:
        OnnxGraph(tmp_path / "g", model.config, model.inputs)
    text = str(caught.value)
    assert message in text and "xport" in text and "\n" not in text, text


def test_a_missing_package_is_named(written: tuple[Path, EagerModel], monkeypatch: pytest.MonkeyPatch) -> None:
    directory, model = written
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentProblem, match=r"needs the package onnxruntime: .*pip install 'onnxruntime>="):
        OnnxGraph(directory, model.config, model.inputs)


def test_the_example_of_the_documentation_runs(
    written: tuple[Path, EagerModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, model = written
    page = (Path(__file__).resolve().parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(directory)
    found: dict[str, Any] = {"prompt": [11, 12, 13]}
    exec(compile(code, "docs/onnx.md", "exec"), found)
    wanted = generate(model, [[11, 12, 13]], SamplingOptions(max_new_tokens=20))[0].token_ids
    assert found["tokens"][: len(wanted)] == wanted and len(found["tokens"]) == 20
    assert np.array(found["tokens"]).dtype.kind == "i"
