"""What a stage refuses before it is built, and recompute of its layers. Stages themselves: ``tests/parallel``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from paddlesft.errors import ModelDirectoryError
from paddlesft.models import pipeline
from paddlesft.models.stored import stored_weights
from tests.checkpoints.shards import write_even_family


def test_family_without_pipeline_is_refused(tiny_family: Callable[[str], Path]) -> None:
    with pytest.raises(ModelDirectoryError, match="PaddleNLP has no pipeline class for the family mistral"):
        pipeline.load_stage(tiny_family("mistral"))


def test_missing_weights_are_refused_on_every_rank(tiny_llama: Path, tmp_path: Path) -> None:
    """Whichever stage would have held them: a rank that goes on would wait for the one that stopped."""
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    weights = load_file(model / "model.safetensors")
    del weights["llama.layers.1.mlp.up_proj.weight"], weights["lm_head.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "np"})
    message = r"model lacks 2 of 21 weights .*: llama\.layers\.1\.mlp\.up_proj\.weight, lm_head\.weight\. Is it a"
    with pytest.raises(ModelDirectoryError, match=message):
        pipeline.load_stage(model)


def test_weights_without_a_place_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the layers that the stage has: those of others are missing for a good reason."""
    source = write_even_family("qwen", tmp_path / "qwen", no_bias=False)
    here = [name for name in stored_weights(source) if name.startswith("qwen.h.1.")]
    own = {name: None for name in here if not (".mlp." in name and name.endswith(".bias"))}
    assert len(own) == len(here) - 3
    for name, instead in {
        "empty_model": lambda *_: paddle.nn.Layer(),
        "_name_as_whole": lambda *_: None,
        "_mark_shared": lambda stage: None,
        "parameters_of": lambda stage: own,
        "fill_parts": lambda *_: None,
    }.items():
        monkeypatch.setattr(pipeline, name, instead)
    message = r"no place for 3 weights of this model: qwen\.h\.1\.mlp\.c_proj\.bias"
    with pytest.raises(ModelDirectoryError, match=message):
        pipeline.load_stage(source, tensor_parallel=(2, 0))
    own |= dict.fromkeys(here)
    pipeline.load_stage(source, tensor_parallel=(2, 0))


class Counting(paddle.nn.Layer):
    """A layer of a stage: takes and gives hidden states and a mask, and counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = paddle.nn.Linear(4, 4)
        self.enable_recompute = True
        self.calls = 0

    def forward(self, tensors: tuple[Any, Any]) -> tuple[Any, Any]:
        self.calls += 1
        hidden, mask = tensors
        return paddle.tanh(self.linear(hidden)) * mask, mask.clone()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Layers 3 and 4 of a model, the latter left out of recompute."""
    layers = {3: Counting(), 4: Counting()}
    monkeypatch.setattr(pipeline, "decoder_layers", lambda stage: stage.layers)
    return SimpleNamespace(layers=layers, config=SimpleNamespace(no_recompute_layers=[4]), _recompute_interval=1)


def run(stage: Any) -> np.ndarray:
    """Forward and backward; return the gradients."""
    first, second = stage.layers.values()
    hidden, _ = second(first((paddle.ones([2, 4]), paddle.to_tensor([[1.0], [0.0]]))))
    hidden.sum().backward()
    found = np.concatenate([layer.linear.weight.grad.numpy() for layer in stage.layers.values()])
    for layer in stage.layers.values():
        layer.linear.clear_gradients()
    return found


def test_layers_run_again_in_the_backward_pass(stage: Any) -> None:
    wanted = run(stage)
    pipeline.recompute_layers(stage)
    for layer in stage.layers.values():
        layer.calls = 0
    np.testing.assert_array_equal(run(stage), wanted)  # though nothing that the first layer is given needs gradients
    assert {number: layer.calls for number, layer in stage.layers.items()} == {3: 2, 4: 1}
    assert stage._recompute_interval == 0 and not any(layer.enable_recompute for layer in stage.layers.values())


def test_evaluation_recomputes_nothing(stage: Any) -> None:
    pipeline.recompute_layers(stage)
    with paddle.no_grad():
        stage.layers[3]((paddle.ones([2, 4]), paddle.ones([2, 1])))
    stage.layers[3].eval()
    stage.layers[3]((paddle.ones([2, 4]), paddle.ones([2, 1])))
    assert stage.layers[3].calls == 2
