"""Quantized layers compute what their dequantized weight computes, forward and backward."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlesft.models.quantized.formats import SCALE, WeightFormat, dequantize, quantize
from paddlesft.models.quantized.linear import QuantizedLinear
from tests.models.quantized.test_formats import FORMATS, IDS, weight


@pytest.mark.parametrize("how", FORMATS, ids=IDS)
def test_forward_and_backward_are_those_of_the_dequantized_weight(how: WeightFormat) -> None:
    plain = nn.Linear(50, 24)
    plain.weight.set_value(weight())
    plain.bias.set_value(paddle.arange(24, dtype="float32"))
    made = QuantizedLinear.of(plain, how)
    plain.weight.set_value(dequantize(made.stored, how, 50))
    xs = [paddle.randn([2, 3, 50]) for _ in range(1)] * 2
    results = []
    for layer, x in zip((plain, made), xs):
        x = x.clone().detach()
        x.stop_gradient = False
        y = layer(x)
        (y * paddle.arange(24, dtype="float32")).sum().backward()
        results.append((y.numpy(), x.grad.numpy()))
    for one, two in zip(*results):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-4)


def test_weights_are_not_trained() -> None:
    made = QuantizedLinear.of(nn.Linear(32, 8), WeightFormat("int4"))
    assert all(p.stop_gradient for p in made.parameters())
    assert set(made.state_dict()) == {"quant_weight", "quant_scale", "bias"}


def test_rounded_activations_equal_a_product_of_integers() -> None:
    how = WeightFormat("int8")
    w, x = weight(64, 16), np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    made = QuantizedLinear(64, 16, how, activations=True)
    stored = quantize(w, how)
    made.take(stored)
    step = np.abs(x).max() / 127
    made.act_scale.set_value(paddle.to_tensor([step]))
    codes = np.clip(np.round(x / np.float32(step)), -127, 127).astype(np.int64)
    wanted = codes @ stored["quant_weight"].numpy().astype(np.int64) * step * stored[SCALE].numpy()
    np.testing.assert_allclose(made(paddle.to_tensor(x)).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_reshaped_input_changes_nothing_but_the_rounding() -> None:
    how, w = WeightFormat("int8"), weight(64, 16)
    paddle.seed(5)
    shift, scale = paddle.randn([64]), paddle.rand([64]) + 0.5
    made = QuantizedLinear(64, 16, how, bias=True, reshaped_input=True)
    made.take({**quantize(w / scale.unsqueeze(1), how), "input_shift": shift, "input_scale": scale})
    made.bias.set_value(-paddle.matmul(shift, w))
    x = paddle.randn([5, 64])
    np.testing.assert_allclose(made.dequantized().numpy(), w.numpy(), atol=0.01)
    wanted = paddle.matmul(x + shift, made.dequantized()) + made.bias
    np.testing.assert_allclose(made(x).numpy(), wanted.numpy(), atol=1e-4)
    np.testing.assert_allclose(made(x).numpy(), paddle.matmul(x, w).numpy(), atol=0.05)
