"""Exported directories of every family, adapter and format: they say what the model in memory says, or do not exist."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.errors import UserError
from paddlesft.export import directory as exporting
from paddlesft.export.check import GraphDiffers
from paddlesft.export.directory import export_graph
from paddlesft.export.static_graph import write_static_graph
from paddlesft.inference.eager import EagerRunner
from paddlesft.inference.loading import Loaded, load_for_inference
from paddlesft.models.graph_directory import PREFIX_FILE, GraphRecord
from paddlesft.models.provenance import fingerprint, read_provenance
from tests.inference.adapters import write_adapter
from tests.tiny_quantized import write_quantized

REPO = Path(__file__).resolve().parents[2]


def exported(loaded: Loaded, output: Path, write: Callable = write_static_graph, **how: Any) -> exporting.ExportReport:
    report = export_graph(loaded, output, write, **{"new_tokens": 5, **how})
    assert report.checked.faults == [] and report.checked.facts()["equal_tokens"] == 5 * len(report.checked.prompts)
    assert report.output == output and not [path for path in output.parent.iterdir() if path.name.startswith(".")]
    return report


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """Reply by PaddleNLP's own forward pass."""
    runner = EagerRunner(model)
    tokens = [int(runner.prefill([prompt]).argmax())]
    while len(tokens) < count:
        tokens.append(int(runner.step(np.array(tokens[-1:])).argmax()))
    return tokens


@pytest.mark.parametrize("name", ["qwen2", "glm"])
def test_every_family_is_exported(name: str, tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    base = tiny_family(name)
    report = exported(load_for_inference(base), tmp_path / "graph")
    assert 0 < report.checked.max_difference < report.checked.bound
    assert len({one.prompt_tokens for one in report.checked.prompts}) > 3
    told = read_provenance(tmp_path / "graph")
    assert (told["kind"], told["base"]["fingerprint"]) == ("graph", fingerprint(base))
    assert told["fingerprint"] == fingerprint(tmp_path / "graph") and told["checked"] == report.checked.facts()
    assert not list((tmp_path / "graph").glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["lora", "prefix", "int4", "a8w8", "lora over nf4"])
def test_adapters_and_quantized_weights_are_exported(
    kind: str, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    base, quantized = tiny_family("qwen2"), kind.split()[-1]
    sizes = {}
    if quantized not in ("lora", "prefix"):
        base = write_quantized(tmp_path / "base", base, quantized)
        sizes = {"formats": quantized}
    adapter = None if kind in ("int4", "a8w8") else write_adapter(tmp_path / "adapter", base, kind.split()[0])
    loaded = load_for_inference(adapter or base)
    prompt = loaded.renderer.render_prompt([{"role": "user", "content": "Hello there"}])
    wanted = greedy(loaded.model, prompt, 8)
    report = exported(loaded, tmp_path / "graph")
    assert report.record.formats.startswith({"int4": "int4", "a8w8": "int8", "nf4": "nf4"}.get(quantized, ""))
    assert bool(report.record.formats) == bool(sizes)
    assert (tmp_path / "graph" / PREFIX_FILE).is_file() == (kind == "prefix")
    said = {
        "lora": "LoRA: added to the weights in memory", "lora over nf4": "LoRA: kept beside the quantized weights",
        "prefix": "prefix: its keys and values",
    }  # fmt: skip
    assert report.adapter.startswith(said.get(kind, "")) and bool(report.adapter) == (kind in said)
    assert ("adapter" in read_provenance(tmp_path / "graph")) == (adapter is not None)
    weights = (tmp_path / "graph" / "model.pdiparams").stat().st_size
    floats = tiny_family("qwen2") / "model.safetensors"
    assert weights < floats.stat().st_size * (0.95 if quantized in ("int4", "a8w8") else 1.05)
    assert run_example(tmp_path / "graph", prompt, 8) == wanted


def run_example(directory: Path, prompt: list[int], new_tokens: int) -> list[int]:
    """Run the program that docs/export.md shows."""
    source = re.search(r"```python\n(.*?)```", (REPO / "docs" / "export.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    nodes = ast.walk(ast.parse(source))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    assert imported == {"json", "sys", "numpy", "paddle.inference"}
    program = directory.parent / "example.py"
    program.write_text(source, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["example.py", str(directory), json.dumps(prompt), str(new_tokens)])
        return runpy.run_path(str(program))["reply"]


def test_a_graph_that_differs_is_not_left_behind(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    def write(model: Any, directory: Path) -> GraphRecord:
        record = write_static_graph(model, directory)
        path = directory / record.weights
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
        middle = len(content) // 8 * 4
        content[middle : middle + 4] = np.array([100.0], dtype=np.float32).view(np.uint8)
        path.write_bytes(content.tobytes())
        return record

    (tmp_path / "there").mkdir()
    with pytest.raises(GraphDiffers, match=r'prompt ".*" \(\d+ tokens\) in a batch, new token 1 of 5: the model takes'):
        export_graph(load_for_inference(tiny_family("qwen2")), tmp_path / "there" / "g", write, new_tokens=5)
    assert list((tmp_path / "there").iterdir()) == []


def test_other_prompts_or_a_wrong_choice_are_faults(
    tiny_family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_family("llama")
    loaded = load_for_inference(base)
    loaded.stop_token_ids = [*loaded.stop_token_ids, 17]
    with pytest.raises(GraphDiffers, match="other prompts, or other stop tokens"):
        export_graph(loaded, tmp_path / "g", write_static_graph, new_tokens=2)
    monkeypatch.setattr(exporting, "disagreements", lambda *arguments: ["sampling with x: token 1, not 2"])
    with pytest.raises(GraphDiffers, match="The exported choice of tokens is not the library's:\n  - sampling with x"):
        export_graph(load_for_inference(base), tmp_path / "g", write_static_graph, new_tokens=2)
    assert not (tmp_path / "g").exists()


def test_inputs_are_not_changed_and_models_without_step_are_refused_first(
    tiny_family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_family("llama")
    with pytest.raises(UserError, match=r"lies in the directory of the model, .* Inputs are never changed"):
        export_graph(load_for_inference(base), base / "graph", write_static_graph)
    loaded = load_for_inference(base)
    loaded.model.config.alibi = True
    monkeypatch.setattr(exporting, "replies_of", None)  # what takes long is not begun
    with pytest.raises(UserError, match=r"\(family llama\): alibi: true.*--mode dynamic"):
        export_graph(loaded, tmp_path / "g", write_static_graph)
