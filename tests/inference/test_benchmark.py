"""The benchmark of a model: which figures there are, that they belong together, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlesft.errors import UserError
from paddlesft.inference import machine_peaks
from paddlesft.inference.benchmark import Memory, Settings, prompts_of, run_benchmark, weight_bytes
from paddlesft.inference.loading import load_for_inference
from tests.tiny_quantized import write_quantized


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_peaks, "SIDE", {"cpu": 128})
    monkeypatch.setattr(machine_peaks, "COPIED", {"cpu": 1 << 20})


def test_the_figures_of_a_model_belong_together(tiny_llama: Path) -> None:
    memory = Memory()
    loaded = load_for_inference(tiny_llama)
    settings = Settings(prompt_length=20, new_tokens=3, batch_sizes=(1, 3), warm_up=0, repetitions=3)
    begun: list[int] = []
    result = json.loads(json.dumps(run_benchmark(loaded, settings, memory, begun.append)))
    assert list(result) == ["format", "machine", "versions", "model", "settings", "memory", "peaks", "results"]
    assert begun == [one["batch_size"] for one in result["results"]] == [1, 3]
    assert result["settings"]["batch_sizes"] == [1, 3]
    assert result["machine"]["device"] == "cpu" and result["machine"]["threads"] >= 1
    assert {"paddlesft", "paddlepaddle", "paddlenlp"} <= set(result["versions"])
    vocabulary = loaded.model.config.vocab_size
    layers = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    model = result["model"]
    assert model["route"] == "eager" and model["dtype"] == "float32" and model["formats"] == ""
    assert model["flops_per_token"] == 2 * (layers + 64 * vocabulary)
    weights = 4 * (layers + 2 * 64 * vocabulary + 5 * 64)  # untied; five norms
    assert model["weight_bytes"] == result["memory"]["weights"] == weights
    for one in result["results"]:
        rows, first, step = one["batch_size"], one["prefill_seconds"], one["token_seconds"]
        assert 0 < first["least"] <= first["median"] <= first["most"] and step["least"] <= step["median"]
        assert one["prefill_tokens_per_second"] == pytest.approx(rows * 20 / first["median"])
        assert one["decode_tokens_per_second"] == pytest.approx(rows / step["median"])
        seen = 20 + 2  # the mean of 21, 22, 23
        assert one["step_flops"] == rows * (model["flops_per_token"] + 4 * 2 * 64 * seen)
        cache = 2 * 2 * 2 * 16 * 4  # bytes of a token
        assert one["cache_bytes"] == rows * 23 * cache
        assert one["step_bytes"] == weights - 4 * 64 * vocabulary + rows * seen * cache
        peak, bandwidth = result["peaks"]["flops"]["value"], result["peaks"]["bandwidth"]["value"]
        assert one["decode_utilisation"] == pytest.approx(one["step_flops"] / step["median"] / peak)
        assert one["prefill_utilisation"] == pytest.approx(one["prefill_flops"] / first["median"] / peak)
        assert one["bandwidth_utilisation"] == pytest.approx(one["step_bytes"] / step["median"] / bandwidth)


def test_quantized_weights_count_as_the_bytes_they_are(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = load_for_inference(write_quantized(tmp_path / "int8", tiny_llama))
    layers = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    rest = 4 * (2 * 64 * loaded.model.config.vocab_size + 5 * 64)
    outputs = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)  # a scale each
    assert weight_bytes(loaded) == layers + 4 * outputs + rest


def test_prompts_are_as_long_as_asked(tiny_llama: Path) -> None:
    loaded = load_for_inference(tiny_llama)
    for length in (1, 5, 300):
        prompts = prompts_of(loaded, length, 2)
        assert [len(prompt) for prompt in prompts] == [length, length]
    assert prompts[0] != prompts[1]


def test_texts_longer_than_the_context_are_refused(tiny_llama: Path) -> None:
    loaded = load_for_inference(tiny_llama)
    with pytest.raises(UserError, match=r"prompt_length 500 and new_tokens 20 make 520 tokens; .* holds 512"):
        run_benchmark(loaded, Settings(prompt_length=500, new_tokens=20), Memory())


def test_memory_is_counted_above_what_was_held_before() -> None:
    memory = Memory()
    begun = memory.now()  # near 0; below where the system took pages back meanwhile
    block = np.ones(200 << 17)  # 200 MiB
    assert memory.now() - begun > 150 << 20
    del block
    assert memory.most() - begun > 150 << 20  # Linux counts in batches of pages: not exactly what was held
    memory.start()
    assert memory.most() - begun < 100 << 20  # what was let go does not count again


def test_known_cards_have_their_makers_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    peak = machine_peaks.peak_flops("bfloat16")
    assert peak.value == 756e12 and peak.how == "data sheet of NVIDIA H100 PCIe, bfloat16"
