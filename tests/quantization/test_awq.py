"""AWQ's searches: against PaddleSlim's where those run, and never worse than rounding to the nearest."""

from __future__ import annotations

import inspect

import numpy as np
import paddle
import pytest

from paddlesft.models.quantized.formats import WeightFormat, dequantize, encode, quantize, scales_of
from paddlesft.quantization.awq import awq_factors, clipped_scales
from paddlesft.quantization.inputs import Moments
from paddlesft.quantization.paddleslim import AutoClip, AWQSearch, prints_to_log

INPUTS, OUTPUTS = 96, 24
HOWS = [WeightFormat("int4"), WeightFormat("int4", 32), WeightFormat("int4", 40), WeightFormat("nf4", 32)]


def case() -> tuple[paddle.Tensor, paddle.Tensor, Moments]:
    """Inputs of very different magnitude, as trained models have them, and a weight with a few large numbers."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, INPUTS)) * np.exp(random.normal(size=INPUTS) * 1.5)
    w = random.standard_t(4, (INPUTS, OUTPUTS)) * 0.1
    x, w = (paddle.to_tensor(array.astype(np.float32)) for array in (x, w))
    moments = Moments()
    moments.add([x])
    return x, w, moments


def lost(x: paddle.Tensor, w: paddle.Tensor, rounded: paddle.Tensor) -> float:
    return float((paddle.matmul(x, w - rounded)).square().mean())


@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.name}-{how.group_size}")
def test_factors_protect_the_inputs_that_matter(how: WeightFormat) -> None:
    x, w, moments = case()
    factors = awq_factors(w, moments.hessian, moments.mean, how).unsqueeze(1)
    scaled = dequantize(quantize(w * factors, how), how, INPUTS) / factors
    nearest = dequantize(quantize(w, how), how, INPUTS)
    assert lost(x, w, scaled) < 0.8 * lost(x, w, nearest)


@pytest.mark.parametrize("group_size", [0, 32])
def test_factors_are_those_of_paddleslims_search(group_size: int) -> None:
    x, w, moments = case()
    method = "groupwise" if group_size else "abs_max_channel_wise"
    search = AWQSearch(bits_length=4, weight_quant_method=method, group_size=group_size or -1)
    with prints_to_log():
        theirs = search.search("", x.unsqueeze(0), moments.mean.unsqueeze(0), w)
    ours = awq_factors(w, moments.hessian, moments.mean, WeightFormat("int4", group_size))
    np.testing.assert_allclose(ours.numpy(), theirs.numpy().reshape(-1), rtol=1e-5)


@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.name}-{how.group_size}")
def test_clipping_is_the_best_of_its_trials_for_each_group(how: WeightFormat) -> None:
    x, w, moments = case()
    found, whole = clipped_scales(w, moments.hessian, how), scales_of(w, how)
    shares = (found / whole).numpy()
    assert shares.min() >= 0.499 and shares.max() <= 1 and (shares < 0.99).any()
    x64, w64 = x.numpy().astype(np.float64), w.numpy().astype(np.float64)
    size = how.group_size or INPUTS
    for trial in range(11):
        rounded = dequantize(encode(w, whole * (1 - trial / 20), how), how, INPUTS).numpy()
        chosen = dequantize(encode(w, found, how), how, INPUTS).numpy()
        for begin in range(0, INPUTS, size):
            part = slice(begin, begin + size)
            errors = [np.square(x64[:, part] @ (w64 - q)[part]).sum(axis=0) for q in (chosen, rounded)]
            assert (errors[0] <= errors[1] * 1.001).all()


def test_inputs_that_were_never_seen_do_no_harm() -> None:
    x, w, _ = case()
    x[:, 3] = 0
    moments = Moments()
    moments.add([x])
    how = HOWS[1]
    factors = awq_factors(w, moments.hessian, moments.mean, how)
    assert bool(paddle.isfinite(factors).all()) and float(factors.min()) > 0
    assert bool(paddle.isfinite(clipped_scales(w, moments.hessian, how)).all())


def test_paddleslims_clipping_still_rounds_with_one_scale() -> None:
    """When this fails, PaddleSlim has been mended, and ``AutoClip`` deserves another look."""
    source = inspect.getsource(AutoClip.auto_clip)
    assert "fake_quant(cur_w, method='abs_max', weight_bits=4)" in source and "cast('float16')" in source
    with pytest.raises(Exception, match="float16"), prints_to_log():
        layer = paddle.nn.Sequential(paddle.nn.Linear(128, 128))
        clip = AutoClip(layer, weight_bits=4, n_sample_token=4)
        layer(paddle.randn([1, 8, 128]))
        clip.auto_clip()
