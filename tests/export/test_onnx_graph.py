"""ONNX graphs say what the model in memory says, and hold its weights bit by bit."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec

from paddlesft.errors import EnvironmentProblem, PaddleSFTError, UserError
from paddlesft.export import onnx_graph
from paddlesft.export.check import ROUNDED_ACTIVATIONS, CheckReport, Prompt, check_graph
from paddlesft.export.onnx_graph import FAST, write_onnx_graph
from paddlesft.export.onnx_weights import block_size, in_blocks
from paddlesft.export.static_graph import save_program
from paddlesft.inference.graph_loading import open_graph
from paddlesft.models import load_model
from paddlesft.models.decoders import decoder_of
from paddlesft.models.families import FAMILIES
from paddlesft.models.graph_directory import write_record
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.quantized.formats import WeightFormat, dequantize, quantize
from paddlesft.models.quantized.linear import QuantizedLinear
from tests.tiny_quantized import KINDS, write_quantized

WITH_STEP = [family.name for family in FAMILIES if family.step is not None]


def written(model: Any, directory: Path, compute: str = "exact") -> onnx.ModelProto:
    directory.mkdir()
    write_record(write_onnx_graph(model, directory, compute), directory)
    with quiet_paddlenlp():
        decoder_of(model).lm.config.save_pretrained(str(directory))
    return onnx.load(str(directory / "model.onnx"))


def checked(model: Any, directory: Path, share: float = 1e-5) -> CheckReport:
    """Run a ragged batch, and each row alone, in ONNX Runtime; PaddleNLP's forward pass is the truth."""
    random, decoder = np.random.default_rng(0), decoder_of(model)
    prompts = [Prompt(str(n), decoder.as_prompt(random.integers(5, 450, n).tolist())) for n in (3, 9, 20)]
    report = check_graph(open_graph(directory), model, prompts, 6, share)
    assert report.faults == [], report.faults
    return report


@pytest.mark.parametrize("name", WITH_STEP)
def test_every_family_is_written(name: str, tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(tiny_family(name))
    graph = written(model, tmp_path / "g")
    assert checked(model, tmp_path / "g").facts()["equal_tokens"] == 18
    assert {entry.domain for entry in graph.opset_import} == {""}  # the standard's operators only
    assert (graph.producer_name, [output.name for output in graph.graph.output]) == (
        "paddlesft", ["logits", "new_cache"],
    )  # fmt: skip
    assert not {node.op_type for node in graph.graph.node} & {"If", "Loop", "Reciprocal"}
    used = {name for node in graph.graph.node for name in node.input}
    assert {one.name for one in graph.graph.initializer} <= used
    stored = sum(int(np.prod(one.dims)) for one in graph.graph.initializer if one.data_type == onnx.TensorProto.FLOAT)
    assert stored <= sum(parameter.size for parameter in model.parameters()) + 2000  # tied weights stand there once


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "int4"])  # awq: int4 with scaled inputs
def test_quantized_layers_are_written_as_their_codes(
    kind: str, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_family("qwen2")
    model = load_model(write_quantized(tmp_path / "q", base, kind))
    graph = written(model, tmp_path / "g")
    share = ROUNDED_ACTIVATIONS if kind in ("a8w8", "llm.int8") else 1e-5
    assert checked(model, tmp_path / "g", share).facts()["equal_tokens"] == 18
    integers = [one for one in graph.graph.initializer if one.data_type in (2, 3)]  # uint8, int8
    assert len(integers) == len(quantized_layers(model))
    most = sum(layer.how.nbytes(layer.in_features, layer.out_features) for layer in quantized_layers(model).values())
    bits = 8 if kind in ("int8", "a8w8", "llm.int8") else 4
    assert sum(int(np.prod(one.dims)) for one in integers) <= most * (1 if bits == 8 else 1.01)


@pytest.mark.parametrize("kind", ["int8", "awq"])  # awq: int4 with scaled inputs
def test_fast_graphs_hold_the_weights_bit_by_bit(kind: str, tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(write_quantized(tmp_path / "q", tiny_family("qwen2"), kind))
    graph = written(model, tmp_path / "g", FAST)
    assert checked(model, tmp_path / "g", ROUNDED_ACTIVATIONS).max_difference > 1e-4  # activations are rounded
    nodes = [node for node in graph.graph.node if node.op_type == "MatMulNBits"]
    layers = {name.split("layers.")[1]: layer for name, layer in quantized_layers(model).items()}
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.graph.initializer}
    assert len(nodes) == len(layers) == 14
    for node in nodes:
        name = node.input[1].split("layers.")[1].removesuffix(".weight_of_codes/codes")
        layer = layers[name]
        found = from_blocks(stored[node.input[1]], stored[node.input[2]], layer)
        assert np.array_equal(found, dequantize(layer.stored, layer.how, layer.in_features).numpy()), name


def from_blocks(codes: np.ndarray, scales: np.ndarray, layer: QuantizedLinear) -> np.ndarray:
    """Dequantize what MatMulNBits is given, as its documentation says: [i, o]."""
    bits = layer.how.bits
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    values = (codes.astype(np.float32) - 2.0 ** (bits - 1)) * scales[:, :, None]
    return values.reshape(layer.out_features, -1)[:, : layer.in_features].T


@pytest.mark.parametrize(
    ("how", "inputs", "block"),
    [
        (WeightFormat("int8"), 200, 32),
        (WeightFormat("int4"), 33, 32),
        (WeightFormat("int4", 96), 200, 32),
        (WeightFormat("int8", 64, True, 5), 130, 32),
        (WeightFormat("int8", 24), 96, None),
    ],
)
def test_any_size_goes_into_blocks(how: WeightFormat, inputs: int, block: int | None) -> None:
    layer = QuantizedLinear(inputs, 7, how)
    layer.take(quantize(paddle.to_tensor(np.random.default_rng(0).normal(size=(inputs, 7)).astype("float32")), how))
    assert block_size(layer) == block
    if block is not None:
        codes, scales = in_blocks(layer, block)
        assert codes.shape == (7, -(-inputs // block), block * how.bits // 8) and codes.dtype == np.uint8
        wanted = dequantize(layer.stored, how, inputs).numpy()
        assert np.array_equal(from_blocks(codes, scales, layer), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (WeightFormat("nf4", 16), r"Layer llama\.layers\.0\.self_attn\.q_proj has weights in nf4, which no fast "
         r"operator of ONNX Runtime knows; it knows int8 and int4\. Set onnx_compute to exact\."),
        (WeightFormat("int4", 24), r"q_proj has weights in int4 with group_size 24: the fast operator takes groups of "
         r"whole blocks of 16 inputs\. Set onnx_compute to exact\."),
        (None, r"onnx_compute fast is for weights in int8 or int4 whose layers do not round activations; this model "
         r"has none\. Leave the key out \(exact\)"),
    ],
)  # fmt: skip
def test_what_fast_cannot_compute_is_refused(
    change: WeightFormat | None, message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_llama)
    attention = model.llama.layers[0].self_attn
    if change is not None:
        attention.q_proj = QuantizedLinear.of(attention.q_proj, change)
    with pytest.raises(UserError, match=message):
        write_onnx_graph(model, tmp_path, FAST)


def test_other_types_and_missing_operators_are_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    model = load_model(tiny_llama)
    monkeypatch.setattr(model.config, "dtype", "bfloat16")
    with pytest.raises(UserError, match="The model's type is bfloat16; ONNX graphs are written in float32"):
        write_onnx_graph(model, tmp_path)
    monkeypatch.undo()
    before = model(paddle.to_tensor([[5, 6]]))[0].numpy()
    words = b"[Paddle2ONNX] swiglu is unknown\n"
    monkeypatch.setattr(onnx_graph.paddle2onnx, "export", lambda *files, **how: os.write(2, words) and None)
    with pytest.raises(PaddleSFTError, match=r"cannot convert this model of the family llama.*swiglu") as caught:
        write_onnx_graph(model, tmp_path)
    assert not isinstance(caught.value, UserError) and "paddlesft export --format paddle" in str(caught.value)
    assert np.array_equal(model(paddle.to_tensor([[5, 6]]))[0].numpy(), before)  # it has its weights back
    assert "Paddle2ONNX" not in "".join(capfd.readouterr())


class Swiglu(nn.Layer):
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return nn.functional.swiglu(x)


def test_an_abort_of_paddle2onnx_does_not_end_this_process(tmp_path: Path) -> None:
    program = save_program(Swiglu(), [InputSpec([None, 4], "float32")], tmp_path / "step")
    made, said = onnx_graph._in_own_process(tmp_path / program)
    assert made is None and "swiglu" in said, said


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    monkeypatch.delitem(sys.modules, "paddlesft.export.onnx_packages")
    with pytest.raises(EnvironmentProblem, match=r"needs packages of the extra onnx: .*pip install 'paddle2onnx=="):
        importlib.import_module("paddlesft.export.onnx_packages")
