"""Kernels of GPUs: what can be known on a CPU. None of them runs here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn.quant import weight_quantize

from paddlesft.models.load import load_model, save_model_directory
from paddlesft.models.quantized import kernels
from paddlesft.models.quantized.directory import put_layer, quantized_layers
from paddlesft.models.quantized.formats import WEIGHT, WeightFormat, quantize
from paddlesft.models.quantized.kernels import Kernel, from_mixed_gemm, kernel_for, to_mixed_gemm
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.models.weights import read_weights


def layer_of(how: WeightFormat, codes: np.ndarray | None = None, size: tuple[int, int] = (128, 64)) -> QuantizedLinear:
    layer = QuantizedLinear(*size, how)
    weight = np.random.default_rng(3).normal(size=size).astype(np.float32) if codes is None else codes
    layer.take(quantize(paddle.to_tensor(weight.astype(np.float32)), how))
    layer.eval()
    return layer


@pytest.mark.parametrize("architecture", kernels.ARCHITECTURES)
@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize(("size", "group"), [((128, 64), 0), ((192, 128), 0), ((256, 64), 64), ((256, 64), 128)])
def test_codes_are_laid_out_as_paddle_does_it(name: str, size: tuple, group: int, architecture: int) -> None:
    """Weights are whole numbers whose largest in each group is the largest code, so that both round them alike."""
    largest = 127 if name == "int8" else 7
    weight = np.random.default_rng(0).integers(-largest, largest + 1, size)
    weight[:: group or size[0]] = largest
    layer = layer_of(WeightFormat(name, group), weight, size)
    wanted, scale = weight_quantize(
        paddle.to_tensor(weight.astype(np.float16)), f"weight_only_{name}", architecture, group or -1
    )
    found = to_mixed_gemm(layer, layer.quant_weight.numpy())
    assert found.shape == tuple(wanted.shape) and found.dtype == np.int8
    np.testing.assert_array_equal(found, wanted.numpy())
    np.testing.assert_array_equal(from_mixed_gemm(layer, found), layer.quant_weight.numpy())
    assert scale.size == layer.quant_scale.size and (scale.numpy() == 1).all()


def test_codes_of_llm_int8_are_laid_out_as_paddle_does_it() -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (128, 64))
    weight[0] = 127
    layer = QuantizedLinear(128, 64, WeightFormat("int8"), activations="dynamic")
    layer.take(quantize(paddle.to_tensor(weight.astype(np.float32)), layer.how))
    wanted, scale = weight_quantize(paddle.to_tensor(weight.astype(np.float16)), "llm.int8", 80)
    (kernel,) = [kernel for kernel in kernels.KERNELS if kernel.name == "llm_int8_linear"]
    found = kernel.arrange(layer, layer.quant_weight.numpy())
    np.testing.assert_array_equal(found, wanted.numpy())
    np.testing.assert_array_equal(kernel.restore(layer, found), layer.quant_weight.numpy())
    assert (scale.numpy() == layer.quant_scale.numpy()[0]).all()


def as_if(run: Callable, **parts: Callable) -> Kernel:
    """A kernel with Paddle's layout that computes on a CPU."""
    return Kernel("a kernel", parts.get("fits", lambda layer: True), to_mixed_gemm, from_mixed_gemm, run)


def right(layer: QuantizedLinear, x: paddle.Tensor, codes: paddle.Tensor) -> paddle.Tensor:
    twin = QuantizedLinear(layer.in_features, layer.out_features, layer.how)
    twin.take({WEIGHT: paddle.to_tensor(from_mixed_gemm(layer, codes.numpy())), **layer.stored_scales})
    return twin.plain(x)


def wrong(layer: QuantizedLinear, x: paddle.Tensor, codes: paddle.Tensor) -> paddle.Tensor:
    return right(layer, x, codes) * 1.1


def absent(layer: QuantizedLinear, x: paddle.Tensor, codes: paddle.Tensor) -> paddle.Tensor:
    raise RuntimeError("(NotFound)\n  The kernel is not registered.")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a CPU pass for a GPU with the given kernels."""

    def give(*there: Kernel) -> None:
        monkeypatch.setattr(kernels, "KERNELS", there)
        monkeypatch.setattr(kernels, "on_cuda", lambda x: True)
        monkeypatch.setattr(kernels, "_agreed", {})
        monkeypatch.setattr(kernels, "_left_out", set())
        monkeypatch.setattr(paddle, "bfloat16", paddle.float32)  # which a CPU multiplies

    return give


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_arranged_codes_take_the_place_of_stored_ones_and_come_back(name: str, device: Callable[..., None]) -> None:
    layer, x = layer_of(WeightFormat(name)), paddle.randn([3, 128])
    before, wanted = layer.quant_weight.numpy(), layer(x).numpy()
    device(as_if(right))
    np.testing.assert_array_equal(layer(x).numpy(), wanted)
    assert layer._buffers[WEIGHT].numpy().shape == to_mixed_gemm(layer, before).shape != before.shape
    np.testing.assert_array_equal(layer.dequantized().numpy(), layer_of(WeightFormat(name)).dequantized().numpy())
    layer(x)
    np.testing.assert_array_equal(layer.state_dict()[WEIGHT].numpy(), before)
    layer(x)
    layer.train()
    x.stop_gradient = False
    layer(x).sum().backward()
    assert x.grad is not None and layer._kernel is None
    np.testing.assert_array_equal(layer.quant_weight.numpy(), before)


@pytest.mark.parametrize(
    ("run", "reason"), [(wrong, "its result is wrong by 10.0%"), (absent, "The kernel is not registered.")]
)
def test_kernels_that_fail_their_check_give_way(
    run: Callable, reason: str, device: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    layers, x = [layer_of(WeightFormat("int8"), size=(128, o)) for o in (64, 128, 64)], paddle.randn([3, 128])
    wanted = [layer(x).numpy() for layer in layers]
    device(as_if(run))
    with caplog.at_level(logging.WARNING, "paddlesft"):
        for layer, y in zip(layers, wanted):
            np.testing.assert_array_equal(layer(x).numpy(), y)
            assert layer._kernel is None
    assert [record.getMessage() for record in caplog.records] == [
        f"a kernel is left out, plain operations compute instead: {reason.rstrip('.')}."
    ]


def test_only_the_choice_of_kernels_is_tested_on_a_cpu(device: Callable[..., None]) -> None:
    layer, x = layer_of(WeightFormat("int8")), paddle.randn([3, 128])
    assert kernel_for(layer, x) is None  # a CPU
    device(as_if(right, fits=lambda layer: layer.out_features == 64), as_if(right))
    assert kernel_for(layer, x) is kernels.KERNELS[0]
    assert kernel_for(layer_of(WeightFormat("int8"), size=(128, 128)), x) is kernels.KERNELS[1]
    assert kernel_for(layer, x.astype("float64")) is None
    layer.train()
    assert kernel_for(layer, x) is None


@pytest.mark.parametrize(
    ("how", "activations", "size", "wanted"),
    [
        (WeightFormat("int8"), "", (128, 64), ["weight_only_linear"]),
        (WeightFormat("int4", 128), "", (256, 64), ["weight_only_linear"]),
        (WeightFormat("int4", 128), "", (192, 64), []),
        (WeightFormat("int4", 32), "", (128, 64), []),
        (WeightFormat("int4"), "", (96, 64), []),
        (WeightFormat("nf4", 64), "", (128, 64), []),
        (WeightFormat("int8"), "dynamic", (128, 64), ["llm_int8_linear"]),
        (WeightFormat("int8"), "static", (128, 64), ["matmul of int8"]),
        (WeightFormat("int8"), "static", (128, 60), []),
        (WeightFormat("int4"), "static", (128, 64), []),
    ],
)
def test_which_layers_kernels_take(
    how: WeightFormat, activations: str, size: tuple, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_architecture", lambda: 80)
    layer = QuantizedLinear(*size, how, activations=activations)
    assert [kernel.name for kernel in kernels.KERNELS if kernel.fits(layer)] == wanted
    monkeypatch.setattr(kernels, "_architecture", lambda: 70)
    assert "weight_only_linear" not in [kernel.name for kernel in kernels.KERNELS if kernel.fits(layer)]


def test_directories_hold_the_stored_layout(tiny_llama: Path, tmp_path: Path, device: Callable[..., None]) -> None:
    model = load_model(tiny_llama)
    for name, linear in list(model.named_sublayers()):
        if isinstance(linear, nn.Linear) and linear.weight.shape[0] % 64 == linear.weight.shape[1] % 64 == 0:
            put_layer(model, name, QuantizedLinear.of(linear, WeightFormat("int4")))
    model.eval()
    before = {name: layer.quant_weight.numpy() for name, layer in quantized_layers(model).items()}
    device(as_if(right))
    with paddle.no_grad():
        model(paddle.to_tensor([[5, 6, 7]]))
    assert before and all(layer._kernel is not None for layer in quantized_layers(model).values())
    save_model_directory(model, tiny_llama, tmp_path)
    tensors, _ = read_weights(tmp_path)
    for name, codes in before.items():
        np.testing.assert_array_equal(tensors[f"{name}.{WEIGHT}"].load(), codes)
