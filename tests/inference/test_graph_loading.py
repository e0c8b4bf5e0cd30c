"""Static graphs take a model's place: opened or refused in words, and answering files as the model in memory does."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.cli.main import main
from paddlesft.errors import ModelDirectoryError, UserError
from paddlesft.export.directory import export_graph
from paddlesft.export.onnx_graph import write_onnx_graph
from paddlesft.export.static_graph import write_static_graph
from paddlesft.inference import loading
from paddlesft.inference.chat import ChatSession
from paddlesft.inference.graph_loading import open_graph
from paddlesft.inference.loading import load_for_inference
from paddlesft.inference.prediction import predict_file, rows_of_prompts
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models import fingerprint, load_model
from paddlesft.models.resolve import resolve_model

ROWS = rows_of_prompts([f"Question {i}" + " and more" * (i * 5 % 7) for i in range(7)])
SAMPLED = SamplingOptions(max_new_tokens=8, decode_strategy="sampling", top_p=0.9, seed=4)


@pytest.fixture(scope="module")
def graphs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    writers = {"paddle": write_static_graph, "onnx": write_onnx_graph}
    for name, write in writers.items():
        export_graph(load_for_inference(tiny_llama), folder / name, write, new_tokens=4)
    return {name: folder / name for name in writers}


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "o.json"
    predict_file(load_for_inference(tiny_llama), ROWS, path, SAMPLED, batch_size=3)
    return path


@pytest.mark.parametrize("kind", ["paddle", "onnx"])
def test_a_graph_answers_as_the_model_it_was_made_from(
    kind: str, graphs: dict[str, Path], whole: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    loaded = load_for_inference(graphs[kind], mode="static")
    assert loaded.identity() == {"model": fingerprint(graphs[kind]), "graph": kind}
    assert loaded.identity()["model"] != fingerprint(tiny_llama)
    path = tmp_path / "o.json"
    report = predict_file(loaded, ROWS, path, SAMPLED, batch_size=2)
    assert path.read_bytes() == whole.read_bytes()
    assert len(report.throughput.reply_seconds) == 7

    path.write_bytes(whole.read_bytes()[:200])  # as if killed in a line
    assert 0 < predict_file(loaded, ROWS, path, SAMPLED, batch_size=3).kept < 7
    assert path.read_bytes() == whole.read_bytes()

    text = json.loads(whole.read_text().splitlines()[0])["output"]
    stop = SAMPLED.replace(stop=[text[len(text) // 2 :][:3]])
    predict_file(loaded, ROWS[:1], tmp_path / "stopped.json", stop)
    stopped = json.loads((tmp_path / "stopped.json").read_text())["output"]
    assert stop.stop[0] not in stopped and text.startswith(stopped) and len(stopped) < len(text)

    greedy = SAMPLED.replace(decode_strategy="greedy_search")
    said = [ChatSession(one, greedy).ask("Hello").text for one in (loaded, load_for_inference(tiny_llama))]
    assert said[0] == said[1] != ""


def test_a_run_of_the_model_is_not_continued_with_its_graph(graphs: dict[str, Path], whole: Path) -> None:
    before = whole.read_bytes()
    with pytest.raises(UserError, match="graph: then None, now 'paddle'"):
        predict_file(load_for_inference(graphs["paddle"]), ROWS, whole, SAMPLED)
    assert whole.read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"base_precision": "full"}, "base_precision: found full, but {graph} holds a static graph"),
        ({"mode": "dynamic"}, "mode: dynamic runs a model in memory, and {graph} holds a static graph. Give {model},"),
        ({"lora_path": "lora"}, "{graph} holds a static graph, which takes no adapter ({lora}). Export {model} with"),
    ],
)  # fmt: skip
def test_a_graph_is_what_it_was_when_it_was_written(
    asked: dict[str, str], message: str, graphs: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    lora, graph = tmp_path / "lora", graphs["paddle"]
    if "lora_path" in asked:
        lora.mkdir()
        (lora / "lora_config.json").write_text("{}")
        asked = {"lora_path": str(lora)}
    with pytest.raises(ModelDirectoryError) as caught:
        load_for_inference(graph, **asked)
    assert message.format(graph=graph, model=tiny_llama, lora=lora) in str(caught.value)


def test_a_type_without_cpu_kernels_is_as_good_as_none(
    graphs: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING, logger="paddlesft"):  # as PaddleNLP's documentation exports and predicts
        assert load_for_inference(graphs["paddle"], dtype="float16").model.config.dtype == "float32"
    assert f"{graphs['paddle']}: float16 has no CPU kernels; the graph computes in float32" in caplog.text
    monkeypatch.setattr(loading, "usable_dtype", lambda wanted: wanted)  # a GPU
    with pytest.raises(ModelDirectoryError, match=r"float16, but .* holds a static graph of float32\. Leave"):
        load_for_inference(graphs["paddle"], dtype="float16")


def test_mode_static_of_a_model_says_how_to_export_it(tiny_llama: Path) -> None:
    with pytest.raises(ModelDirectoryError) as caught:
        load_for_inference(tiny_llama, mode="static")
    command = f"paddlesft export --model_name_or_path {tiny_llama} --output_path GRAPH_DIR"
    assert command in str(caught.value) and "leave mode out" in str(caught.value)


@pytest.mark.parametrize("use", [load_model, resolve_model])
def test_what_needs_a_model_names_the_one_a_graph_was_made_from(
    use: Callable[[Path], Any], graphs: dict[str, Path], tiny_llama: Path
) -> None:
    with pytest.raises(ModelDirectoryError) as caught:
        use(graphs["onnx"])
    assert str(caught.value) == (
        f"{graphs['onnx']} holds a static graph, which predict, chat and benchmark run. Here a model is needed: give "
        f"{tiny_llama}, from which it was exported."
    )


@pytest.mark.parametrize("kind", ["paddle", "onnx"])
def test_a_graph_whose_record_is_lost_is_explained(kind: str, graphs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(graphs[kind], tmp_path / "lost", ignore=shutil.ignore_patterns("graph.json"))
    with pytest.raises(ModelDirectoryError, match=r"static graph, but its graph\.json is missing\. Copy the directory"):
        load_for_inference(tmp_path / "lost")


@pytest.mark.parametrize("names", [("model.pdmodel",), ("model.pdiparams", "model.json")])
def test_a_graph_of_paddlenlp_is_explained(names: tuple[str, ...], tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in names:
        (tmp_path / "old" / name).write_bytes(b"")
    with pytest.raises(ModelDirectoryError, match=rf"graph that PaddleNLP exported \({names[0]}\) and no model"):
        load_for_inference(tmp_path / "old")


def test_damaged_directories_are_named(graphs: dict[str, Path], tiny_llama: Path, tmp_path: Path) -> None:
    graph = tmp_path / "g"
    shutil.copytree(graphs["paddle"], graph)

    def refused(**record: Any) -> str:
        written = (graph / "graph.json").read_text()
        (graph / "graph.json").write_text(json.dumps({**json.loads(written), **record}))
        with pytest.raises(ModelDirectoryError) as caught:
            open_graph(graph)
        (graph / "graph.json").write_text(written)
        return str(caught.value)

    assert "format is 'tensorrt'; this version runs paddle and onnx" in refused(format="tensorrt")
    assert "divided among 2 ranks" in refused(ranks=2) and "bytes instead of 3" in refused(sizes={"model.json": 3})
    np.save(graph / "prefix_cache.npy", np.zeros([4, 2, 3, 5], "float32"))
    assert "prefix_cache.npy has the shape [4, 2, 3, 5]; graph.json asks for [4, 2, w, 16]" in refused()
    (graph / "prefix_cache.npy").write_bytes(b"\x93NUMPY")
    assert "prefix_cache.npy cannot be read (" in refused()
    with pytest.raises(ModelDirectoryError, match=r"has no graph\.json: it holds no static graph"):
        open_graph(tiny_llama)


def test_the_command_line_runs_a_graph_and_writes_its_speed(
    graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, speed = tmp_path / "dev.json", tmp_path / "speed.json"
    data.write_text("".join(json.dumps({"src": f"Number {i}"}) + "\n" for i in range(12)))
    arguments = [
        "predict", "--model_name_or_path", graphs["paddle"], "--data_file", data, "--max_new_tokens", 3,
        "--output_file", tmp_path / "o.json", "--speed_file", speed, "--batch_size", 4, "--inference_model",
    ]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    shown = capsys.readouterr().out
    assert f"Model: {graphs['paddle']} (paddle graph), float32 on cpu" in shown
    assert "inference_model: PaddleNLP's fused kernels run on GPUs, and this run uses cpu; the model runs" in shown
    assert "Seconds from a request to its first token: p50 0." in shown and f"Speed: {speed}" in shown
    facts = json.loads(speed.read_text())
    assert (facts["graph"], facts["replies"], facts["generated_tokens"], facts["batch_size"]) == ("paddle", 12, 36, 4)
    first, last = facts["seconds_to_first_token"], facts["seconds_to_last_token"]
    assert 0 < first["p50"] <= first["p90"] <= first["p99"] < last["p99"]
    assert first["p50"] < last["p50"] and facts["ips"] > facts["qps"] > 0
