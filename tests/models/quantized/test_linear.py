"""Quantized layers compute what their dequantized weight computes, forward and backward."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlesft.errors import ConfigError, ModelDirectoryError
from paddlesft.models.quantized.formats import WeightFormat, dequantize, quantize, scale_of
from paddlesft.models.quantized.linear import QuantizedLinear
from tests.models.quantized.test_formats import FORMATS, IDS, weight

INT8 = WeightFormat("int8")


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


@pytest.mark.parametrize("how", FORMATS, ids=IDS)
def test_large_layers_are_computed_block_by_block(how: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    made = QuantizedLinear(301, 4000, how)
    made.take(quantize(weight(301, 4000), how))
    whole = made.dequantized()
    monkeypatch.setattr(QuantizedLinear, "dequantized", None)
    x = paddle.randn([5, 301])
    x.stop_gradient = False
    y = made(x)
    np.testing.assert_allclose(y.numpy(), paddle.matmul(x, whole).numpy(), atol=2e-5)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.tile(whole.numpy().sum(axis=1), (5, 1)), atol=2e-4)


@pytest.mark.parametrize(
    "how", [INT8, WeightFormat("int4", 64), WeightFormat("nf4", 64, True)], ids=lambda how: how.name
)
def test_float_weights_are_never_there_at_once(how: WeightFormat) -> None:
    """2048 x 4096 numbers of 32 bits are 32 MiB; a block of them, in all its stages, needs less than 14."""
    made = QuantizedLinear(2048, 4096, how)
    x = paddle.randn([1, 2048])
    x.stop_gradient = False
    before = paddle.base.core.host_memory_stat_current_value("Allocated", 0)
    paddle.base.core.host_memory_stat_reset_peak_value("Allocated", 0)
    made(x).sum().backward()
    assert paddle.base.core.host_memory_stat_peak_value("Allocated", 0) - before < 14 * 2**20


@pytest.mark.parametrize("activations", ["", "static", "dynamic"])
def test_no_tokens_are_no_error(activations: str) -> None:
    assert rounding_layer(activations)(paddle.zeros([2, 0, 64])).shape == [2, 0, 16]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("how", [WeightFormat("int8"), WeightFormat("nf4", 16, True)], ids=["int8", "nf4"])
def test_other_types_of_the_model_leave_codes_and_scales_as_they_are(how: WeightFormat, dtype: str) -> None:
    made = QuantizedLinear(64, 16, how, bias=True, reshaped_input=True)
    made.take(quantize(weight(64, 16), how))
    model = nn.Sequential(nn.Linear(64, 64), made)
    before = {name: tensor.numpy() for name, tensor in made.state_dict().items()}
    for change in (lambda: model.to(dtype=dtype), lambda: model.astype(dtype)):
        change()
        assert str(model[0].weight.dtype).endswith(dtype)
        for name in set(before) - {"bias"}:
            assert made.state_dict()[name].numpy().dtype == before[name].dtype
            np.testing.assert_array_equal(made.state_dict()[name].numpy(), before[name])
    if dtype == "float64":  # the only one of them that a CPU multiplies
        x = paddle.randn([3, 64]).astype(dtype)
        np.testing.assert_allclose(
            made(x).numpy(), paddle.matmul(x, made.dequantized().astype(dtype)).numpy(), atol=1e-6
        )


def test_layers_of_a_model_of_16_bits_keep_scales_of_32() -> None:
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float16")
    try:
        made = QuantizedLinear(64, 16, INT8, bias=True, activations="static", reshaped_input=True)
    finally:
        paddle.set_default_dtype(before)
    assert {str(t.dtype) for name, t in made.state_dict().items() if name != "quant_weight"} == {"paddle.float32"}


def test_weights_are_not_trained() -> None:
    made = QuantizedLinear.of(nn.Linear(32, 8), WeightFormat("int4"))
    assert all(p.stop_gradient for p in made.parameters())
    assert set(made.state_dict()) == {"quant_weight", "quant_scale", "bias"}


def rounding_layer(activations: str, inputs: int = 64, how: WeightFormat = INT8) -> QuantizedLinear:
    made = QuantizedLinear(inputs, 16, how, activations=activations)
    made.take(quantize(weight(inputs, 16), how))
    return made


def product_of_codes(x: np.ndarray, step: np.ndarray, layer: QuantizedLinear) -> np.ndarray:
    """Round x by its step, multiply as whole numbers of 64 bits, scale in float64."""
    codes = np.clip(np.round(x / step.astype(np.float32)), -127, 127).astype(np.int64)
    return codes @ layer.quant_weight.numpy().astype(np.int64) * step.astype(np.float64) * layer.quant_scale.numpy()


@pytest.mark.parametrize("inputs", [64, 3000])
def test_rounded_activations_equal_a_product_of_integers(inputs: int) -> None:
    x = np.random.default_rng(1).normal(size=(5, inputs)).astype(np.float32)
    made = rounding_layer("static", inputs)
    step = np.abs(x).max() / 127
    made.act_scale.set_value(paddle.to_tensor([step]))
    wanted = product_of_codes(x, np.asarray(step), made)
    np.testing.assert_allclose(made(paddle.to_tensor(x)).numpy(), wanted, rtol=3e-7)


def test_products_of_large_codes_are_exact() -> None:
    """Sums beyond 2^24 are rounded once, at the end; float32 alone rounds them on the way."""
    made = QuantizedLinear(3000, 16, WeightFormat("int8"), activations="static")
    random = np.random.default_rng(0)
    x, codes = random.integers(100, 128, (8, 3000)), random.integers(100, 128, (3000, 16))
    made.take({"quant_weight": paddle.to_tensor(codes.astype(np.int8)), "quant_scale": paddle.ones([1, 16])})
    wanted = (x @ codes).astype(np.float32)
    found = made(paddle.to_tensor(x.astype(np.float32))).numpy()
    np.testing.assert_array_equal(found, wanted)
    assert (paddle.matmul(*(paddle.to_tensor(y.astype(np.float32)) for y in (x, codes))).numpy() != wanted).any()


def test_tokens_are_rounded_by_their_own_largest_number_and_outliers_are_not() -> None:
    x = np.random.default_rng(1).normal(size=(2, 5, 64)).astype(np.float32)
    x[0, 2, 7], x[1, 1, 40] = 60.0, -6.5
    x[1, 4] = 0
    made = rounding_layer("dynamic")
    rest = x.reshape(10, 64).copy()
    rest[2, 7] = rest[6, 40] = 0
    step = np.abs(rest).max(axis=1, keepdims=True)
    step = np.where(step == 0, 1, step) / 127
    wanted = product_of_codes(rest, step, made)
    exact = made.dequantized().numpy().astype(np.float64)
    wanted[2] += 60.0 * exact[7]
    wanted[6] -= 6.5 * exact[40]
    found = made(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(found, wanted.reshape(2, 5, 16), rtol=1e-5, atol=1e-6)

    def error(y: np.ndarray) -> float:
        right = x @ exact
        return float(np.linalg.norm(y - right) / np.linalg.norm(right))

    static = rounding_layer("static")
    static.act_scale.set_value(paddle.to_tensor([60 / 127]))
    assert error(found) < 0.01 < 0.04 < error(static(paddle.to_tensor(x)).numpy())


def test_a_token_gives_the_same_beside_outliers_of_others() -> None:
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    x[3, ::7] = 50.0
    made = rounding_layer("dynamic")
    alone = [made(paddle.to_tensor(row)).numpy() for row in x]
    np.testing.assert_allclose(made(paddle.to_tensor(x)).numpy(), alone, rtol=1e-5, atol=1e-5)


def test_without_outliers_all_is_rounded() -> None:
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    made = rounding_layer("dynamic", how=WeightFormat("int8", double_quantization=True))
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    codes = np.round(x / step) @ made.quant_weight.numpy().astype(np.float64)
    wanted = codes * step * scale_of(made.stored, made.how).numpy()
    np.testing.assert_allclose(made(paddle.to_tensor(x)).numpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_training_through_rounded_activations_is_refused(activations: str) -> None:
    made, x = rounding_layer(activations), paddle.randn([3, 64])
    x.stop_gradient = False
    with pytest.raises(ConfigError, match=r"rounds its activations.*Train on a base with quantized weights only.*nf4"):
        made(x)
    with paddle.no_grad():
        assert made(x).shape == [3, 16]


@pytest.mark.parametrize(
    ("how", "activations", "message"),
    [
        (WeightFormat("int8", 32), "static", "need weights of int8 or int4 with one scale for each output"),
        (WeightFormat("nf4", 64), "dynamic", "(group_size 0), not nf4 with group_size 64."),
        (WeightFormat("int8"), "sometimes", "'sometimes' are unknown: allowed are 'static', 'dynamic' and '' (not"),
    ],
)
def test_impossible_activations_are_refused(how: WeightFormat, activations: str, message: str) -> None:
    with pytest.raises(ModelDirectoryError) as caught:
        QuantizedLinear(64, 16, how, activations=activations)
    assert message in str(caught.value)


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
